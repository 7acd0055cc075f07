"""From a command line to plain values, composed by Hydra; an unknown name is reported with the nearest known one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlexp.config.overrides import PRESETS, check_overrides
from rlexp.config.problems import NO_SETTING, ConfigError, Problem
from rlexp.config.sources import CONFIG_NAME, SHIPPED, Sources, config_loader, hydra_session

NO_RESULTS = (
    "seed",
    "logger",
    "checkpoint",
    "resume",
    "threads",
    "env.num_workers",
    "checks",
    "evaluation.video_interval",
)
"""Settings that runs of one configuration may differ in: where results go, cores, checks, videos, and the seed."""
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Composed:
    """A composed config.

    Attributes:
        values: the resolved config as plain values, without Hydra's own part.
        run_dir: the run's folder by Hydra's settings.
        problems: overrides that are not in ``values``, since they name an unknown group or option.
        overrides: what it was composed of.
        sources: where its files come from.
    """

    values: dict[str, Any]
    run_dir: str
    problems: list[Problem]
    overrides: Sequence[str]
    sources: Sources


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
        faults: list[Problem] = []
        try:
            composed = compose(sources.config_name or CONFIG_NAME, checked, return_hydra_config=True)
            faults = _faults(sources, composed.hydra.runtime.choices)
            visible = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            values = OmegaConf.to_container(visible, resolve=True, throw_on_missing=True)
            run_dir = composed.hydra.run.dir
        except OmegaConfBaseException as error:
            raise ConfigError([*problems, *(faults or _marked_below(sources)), _unresolved(error)]) from error
        except (ConfigCompositionException, HydraException, ValueError, YAMLError) as error:
            raise ConfigError([*problems, *_marked_below(sources), Problem("config", f"{error}")]) from error
        except RecursionError as error:
            message = "an option has itself among its defaults: one that extends a shipped option needs another name."
            raise ConfigError([*problems, Problem("config", message)]) from error
    assert isinstance(values, dict)
    if faults:
        values.pop(PRESETS, None)  # where a preset's settings are without its '# @package _global_'
    plain = {str(key): value for key, value in values.items()}
    return Composed(plain, run_dir, [*problems, *faults], overrides, sources)


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


def name_presets(problems: Sequence[Problem], composed: Composed) -> list[Problem]:
    """The same problems; that of a preset's setting which the chosen option does not have says how to leave it out."""
    if not any(problem.message.startswith(NO_SETTING) for problem in problems):
        return list(problems)
    found = origins(composed.overrides, composed.sources)
    return [
        Problem(p.key, f"{p.message} {found[p.key]} sets it: leave it out with '~{p.key}'.", p.value)
        if p.message.startswith(NO_SETTING) and found.get(p.key, "").startswith(f"{PRESETS}/")
        else p
        for p in problems
    ]


def _leaves(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path


def _faults(sources: Sources, used: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the user's own files among the options composed, by their groups, although Hydra took them."""
    names = [sources.config_name or CONFIG_NAME, *(f"{group.split('@')[0]}/{option}" for group, option in used.items())]
    files = [file for folder in _own_folders(sources) for name in names if (file := folder / f"{name}.yaml").is_file()]
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8-sig")
        if not isinstance(yaml.safe_load(text), Mapping):
            found.append(Problem(str(file), "holds no settings, which are lines of the form key: value."))
        elif file.parent.name == PRESETS and _package(text) != "_global_":
            message = "must begin with the line '# @package _global_': its settings are the whole experiment's."
            found.append(Problem(str(file), message))
    return [*found, *_marked(files)]


def _package(text: str) -> str | None:
    """The package that a file's header gives its settings; Hydra reads it as far as the first line of another kind."""
    for line in filter(None, map(str.strip, text.splitlines())):
        key, *value = line.lstrip("# ").split()
        if not (line.startswith("#") and key.startswith("@")):
            return None
        if key == "@package":
            return " ".join(value)
    return None


def _own_folders(sources: Sources) -> list[Path]:
    return [Path(folder) for folder in (sources.config_dir, sources.config_path) if folder]


def _marked_below(sources: Sources) -> list[Problem]:
    """The user's files that begin with a byte order mark, where composing failed and any of them may be the reason."""
    depths = ("*.yaml", "*/*.yaml", "*/*/*.yaml")
    return _marked(file for folder in _own_folders(sources) for depth in depths for file in sorted(folder.glob(depth)))


def _marked(files: Iterable[Path]) -> list[Problem]:
    """Those that begin with a byte order mark: Hydra does not see their ``# @package``."""
    found = []
    for file in files:
        with suppress(OSError):  # an editor's lock, a folder or another's file
            if file.read_bytes().startswith(_BYTE_ORDER_MARKS):
                message = "begins with a byte order mark, which YAML here must not: save it as UTF-8 without BOM."
                found.append(Problem(str(file), message))
    return found


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = error.full_key or "config"
    if "MissingMandatoryValue" in type(error).__name__ or "missing" in str(error).lower():
        return Problem(key, f"has no value yet: set it with {key}=...")
    return Problem(key, f"{str(error).splitlines()[0]}.")
