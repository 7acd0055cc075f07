"""From a command line to plain values, composed by Hydra; an unknown name is reported with the nearest known one."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlexp.config.overrides import check_overrides
from rlexp.config.problems import ConfigError, Problem
from rlexp.config.sources import CONFIG_NAME, SHIPPED, Sources, config_loader, hydra_session

NO_RESULTS = ("seed", "logger", "checkpoint", "resume", "threads", "env.num_workers")
"""Settings that runs of one configuration may differ in: where results go, how many cores are used, and the seed."""


@dataclass(frozen=True)
class Composed:
    """A composed config.

    Attributes:
        values: the resolved config as plain values, without Hydra's own part.
        run_dir: the run's folder by Hydra's settings.
        problems: overrides that are not in ``values``, since they name an unknown group or option.
    """

    values: dict[str, Any]
    run_dir: str
    problems: list[Problem]


def load(overrides: Sequence[str], sources: Sources = SHIPPED) -> Composed:
    """Compose the config that a command line describes and resolve it to plain values.

    Args:
        overrides: Hydra overrides (``env=hopper``, ``loss.gamma=0.97``), sweeps already expanded.
        sources: where configs come from.

    Raises:
        ConfigError: the config cannot be composed, or a value cannot be resolved.
    """
    with hydra_session(sources):
        checked, problems = check_overrides(overrides, sources)
        if sources.config_path is not None and not any(text.startswith("hydra.run.dir=") for text in checked):
            checked.append("hydra.run.dir='${rlexp.run_dir:${env.name}}'")
        try:
            composed = compose(sources.config_name or CONFIG_NAME, checked, return_hydra_config=True)
            visible = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            values = OmegaConf.to_container(visible, resolve=True, throw_on_missing=True)
            run_dir = composed.hydra.run.dir
            problems += _marked(sources, composed.hydra.runtime.choices)
        except OmegaConfBaseException as error:
            raise ConfigError([*problems, *_marked(sources), _unresolved(error)]) from error
        except (ConfigCompositionException, HydraException, UnicodeDecodeError, YAMLError) as error:
            raise ConfigError([*problems, *_marked(sources), Problem("config", f"{error}")]) from error
        except RecursionError as error:
            message = "an option has itself among its defaults: one that extends a shipped option needs another name."
            raise ConfigError([*problems, Problem("config", message)]) from error
    assert isinstance(values, dict)
    return Composed({str(key): value for key, value in values.items()}, run_dir, problems)


def load_hydra(overrides: Sequence[str], sources: Sources = SHIPPED) -> tuple[HydraContext, DictConfig]:
    """Compose Hydra's own settings for a multirun, which describe its launcher.

    Args:
        overrides: of Hydra's settings only (``launcher=joblib``, ``hydra.launcher.n_jobs=2``).
        sources: where configs come from.

    Raises:
        ConfigError: they cannot be composed.
    """
    with hydra_session(sources):
        checked, problems = check_overrides(overrides, sources)
        if problems:
            raise ConfigError(problems)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            config = hydra.compose_config(
                sources.config_name or CONFIG_NAME, checked, RunMode.MULTIRUN, with_log_configuration=False
            )
        except (OmegaConfBaseException, ConfigCompositionException, HydraException) as error:
            raise ConfigError([Problem("hydra", str(error))]) from error
        return HydraContext(hydra.config_loader, Callbacks(config)), config


def origins(overrides: Sequence[str], sources: Sources = SHIPPED) -> dict[str, str]:
    """Where each value of the composed config comes from: a config file, or the command line.

    Args:
        overrides: as for `load`.
        sources: where configs come from.

    Returns:
        From a value's full path (``loss.gamma``) to its file (``base_loss``) or the override that set it.
    """
    found: dict[str, str] = {}
    with hydra_session(sources):
        checked, _ = check_overrides(overrides, sources)
        loader = config_loader()
        defaults = loader.compute_defaults_list(sources.config_name or CONFIG_NAME, checked, RunMode.RUN)
        for default in defaults.defaults:
            file = default.config_path
            if file is not None and not file.startswith("hydra/") and (loaded := loader.repository.load_config(file)):
                values = OmegaConf.to_container(loaded.config)
                found.update(dict.fromkeys(_leaves(values, default.package or ""), file))
        for override in defaults.config_overrides:
            if not override.is_delete() and not override.key_or_group.startswith("hydra"):
                leaves = _leaves(override.value(), override.key_or_group)
                found.update(dict.fromkeys(leaves, str(override.input_line).lstrip("+")))
    return found


def _leaves(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path


def _marked(sources: Sources, used: Mapping[str, Any] | None = None) -> list[Problem]:
    """The user's YAML files that begin with a byte order mark: Hydra does not see their ``# @package``.

    Args:
        sources: where configs come from.
        used: the options composed, by their groups; None where composing failed, and any file may be the reason.
    """
    problems = []
    for folder in map(Path, filter(None, (sources.config_dir, sources.config_path))):
        if used is None:
            files = sorted(path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}.yaml"))
        else:
            options = [f"{group.split('@')[0]}/{option}.yaml" for group, option in used.items()]
            files = [folder / f"{sources.config_name or CONFIG_NAME}.yaml", *(folder / option for option in options)]
        for file in files:
            try:
                start = file.read_bytes()[:3]
            except OSError:
                continue
            if start == codecs.BOM_UTF8 or start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                message = "begins with a byte order mark, which YAML here must not: save it as UTF-8 without BOM."
                problems.append(Problem(str(file), message))
    return problems


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = error.full_key or "config"
    if "MissingMandatoryValue" in type(error).__name__ or "missing" in str(error).lower():
        return Problem(key, f"has no value yet: set it with {key}=...")
    return Problem(key, f"{str(error).splitlines()[0]}.")
