"""From a command line to plain values: Hydra composes, and every wrong name is told with the right one."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlexp.config.problems import ConfigError, Problem, did_you_mean

CONFIG_NAME = "train"
VERSION_BASE = "1.3"


@dataclass(frozen=True)
class Composed:
    """What a command line means.

    Attributes:
        values: the resolved config, plain values, Hydra's own part left out.
        run_dir: where Hydra's settings say that the run goes.
        problems: overrides that were left out of ``values`` since they name nothing that exists.
    """

    values: dict[str, Any]
    run_dir: str
    problems: list[Problem]


def conf_dir() -> Path:
    """The folder of shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def new_run_path(name: str, root: str = "outputs") -> Path:
    """``root/<name>/<date>_<time>_<short id>``: unique however many runs start in one second."""
    return Path(root) / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


def load(overrides: Sequence[str], config_dir: str | None = None, config_name: str | None = None) -> Composed:
    """Compose the config that a command line describes and resolve it to plain values.

    Args:
        overrides: Hydra overrides (``env=hopper``, ``loss.gamma=0.97``), sweeps already expanded.
        config_dir: a folder of the user's own configs, beside the shipped ones.
        config_name: the primary config; None is ``train``.

    Raises:
        ConfigError: the rest cannot be composed, or a value cannot be resolved.
    """
    with _hydra(config_dir):
        checked, problems = _tolerant(overrides)
        try:
            composed = compose(config_name or CONFIG_NAME, checked, return_hydra_config=True)
            hydra = composed.hydra
            visible = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            values = OmegaConf.to_container(visible, resolve=True, throw_on_missing=True)
            run_dir = hydra.run.dir
        except OmegaConfBaseException as error:
            raise ConfigError([*problems, _unresolved(error)]) from error
        except (ConfigCompositionException, HydraException) as error:
            raise ConfigError([*problems, Problem("config", f"{error}")]) from error
    assert isinstance(values, dict)
    return Composed({str(key): value for key, value in values.items()}, run_dir, problems)


def tolerant(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """The same overrides, groups and options checked, with keys allowed to be new.

    Hydra stops at the first unknown key, suggests nothing, and accepts ``+typo=1``. Here every ``key=value`` may
    add, so that the schema sees all of them at once and refuses what it does not know.

    Raises:
        ConfigError: an override cannot be read, or names a group or an option that does not exist.
    """
    with _hydra(config_dir):
        checked, problems = _tolerant(overrides)
    if problems:
        raise ConfigError(problems)
    return checked


def expand_sweeps(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of every job of a multirun: the product of all choices.

    Raises:
        ConfigError: an override cannot be read.
    """
    alternatives = []
    for text in overrides:
        override = _parse(text)
        if override.is_sweep_override() and override.is_discrete_sweep():
            key = text.split("=", 1)[0]
            alternatives.append([f"{key}={choice}" for choice in override.sweep_string_iterator()])
        elif not override.is_sweep_override():
            alternatives.append([text])
    return (list(job) for job in itertools.product(*alternatives))


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError([Problem(text, f"cannot be read as key=value: {reason}.")]) from error


def _tolerant(overrides: Sequence[str]) -> tuple[list[str], list[Problem]]:
    checked: list[str] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            override = _parse(text)
        except ConfigError as error:
            problems += error.problems
            continue
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            checked.append(text)
        elif "/" in key or key in GlobalHydra.instance().config_loader().list_groups(""):
            wrong = list(_wrong_options(override))
            problems += wrong
            checked += [] if wrong else [text]
        elif override.is_delete() or override.is_force_add():
            checked.append(text)
        else:
            checked.append(f"++{text.removeprefix('+')}")
    return checked, problems


def _wrong_options(override: Override) -> Iterator[Problem]:
    group = override.key_or_group
    options = GlobalHydra.instance().config_loader().get_group_options(group)
    if not options:
        yield Problem(group, "there is no such group of options.")
    elif not override.is_delete():
        value = override.value()
        choices = value if isinstance(value, list) else [value]
        if override.is_sweep_override():
            choices = [str(choice) for choice in override.sweep_string_iterator()]
        for choice in choices:
            if choice is not None and str(choice) not in options:
                yield Problem(group, f"there is no such option. {did_you_mean(str(choice), options)}", str(choice))


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = error.full_key or "config"
    if "MissingMandatoryValue" in type(error).__name__ or "missing" in str(error).lower():
        return Problem(key, f"has no value yet: give one with {key}=...")
    return Problem(key, f"{str(error).splitlines()[0]}.")


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[None]:
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError([Problem("--config-dir", "there is no such folder.", config_dir)])
    OmegaConf.register_new_resolver("rlexp.run_dir", lambda name: str(new_run_path(name)), use_cache=True, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
        if config_dir is not None:
            path = GlobalHydra.instance().config_loader().get_search_path()
            path.append("command-line", f"file://{Path(config_dir).resolve()}")
        yield
