"""Overrides of a command line: checked before Hydra sees them, and expanded to the jobs of a multirun."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from rlexp.config.legacy import current_override
from rlexp.config.options import groups
from rlexp.config.paths import alternatives as path_alternatives
from rlexp.config.paths import literal
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.sources import SHIPPED, Sources, hydra_session, names

PRESETS = "experiment"  # the group from which no option need be chosen


def tolerant(overrides: Sequence[str], sources: Sources = SHIPPED) -> list[str]:
    """The same overrides with groups and options checked, in a form in which Hydra accepts unknown keys.

    Hydra stops at the first unknown key, suggests nothing, and accepts ``+typo=1``. With every ``key=value`` as
    ``++key=value``, the schema sees all of them and reports the unknown ones together.

    Raises:
        ConfigError: an override cannot be read, or names a group or an option that does not exist.
    """
    with hydra_session(sources):
        checked, problems = check_overrides(overrides, sources)
    if problems:
        raise ConfigError(problems)
    return checked


def check_overrides(overrides: Sequence[str], sources: Sources) -> tuple[list[str], list[Problem]]:
    """`tolerant` within a `hydra_session`: the overrides without problems, and the problems of the others."""
    checked: list[str] = []
    problems: list[Problem] = []
    groups = set(names("", ObjectType.GROUP))
    for given in overrides:
        if (text := current_override(literal(given))) is None:
            continue
        try:
            override = _parse(text)
        except ConfigError as error:
            problems += error.problems
            continue
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            checked.append(text)
        elif "/" in key or key in groups:
            wrong = list(_wrong_options(override, sources))
            problems += wrong
            checked += [] if wrong or _is_no_preset(override) else [text]
        elif override.is_delete() or override.is_force_add():
            checked.append(text)
        else:
            checked.append(f"++{text.removeprefix('+')}")
    return checked, problems


def _wrong_options(override: Override, sources: Sources) -> Iterator[Problem]:
    group = override.key_or_group
    options = names(group, ObjectType.CONFIG)
    if not options:
        yield Problem(group, "there is no such group of options.")
    elif not override.is_delete():
        value = override.value()
        choices = value if isinstance(value, list) else [value]
        if override.is_sweep_override():
            if not override.is_choice_sweep() or isinstance(value, Glob):
                yield Problem(group, "stands for several options: add --multirun.", str(override.input_line))
                return
            choices = [str(choice) for choice in override.sweep_string_iterator()]
        for choice in choices:
            choice = "null" if choice is None else choice
            if str(choice) not in options and not (group == PRESETS and choice == "null"):
                hint = _other_suffix(f"{group}/{choice}", sources) or did_you_mean(str(choice), options)
                yield Problem(group, f"there is no such option. {hint}", str(choice))


def _is_no_preset(override: Override) -> bool:
    """Whether it is ``experiment=null``, which is the default, and which Hydra does not accept."""
    return override.key_or_group == PRESETS and not override.is_delete() and override.value() is None


def _other_suffix(option: str, sources: Sources) -> str:
    """What to do about ``option.yml``, which Hydra does not see."""
    for folder in filter(None, (sources.config_dir, sources.config_path)):
        if (file := Path(folder) / f"{option}.yml").is_file():
            return f"{file} ends in .yml, and options end in .yaml: rename it."
    return ""


def expand_sweeps(overrides: Sequence[str], sources: Sources = SHIPPED) -> Iterator[list[str]]:
    """The overrides of each job of a multirun: the Cartesian product of all choices, ranges and globs.

    Args:
        overrides: as on the command line.
        sources: where the options come from that a glob matches.

    Raises:
        ConfigError: an override cannot be read, or names no values to run.
    """
    alternatives: list[list[str]] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            if (paths := path_alternatives(text)) is not None:
                alternatives.append(list(paths))
                continue
            override = _parse(literal(text))
            alternatives.append(_choices(override, text, sources) if override.is_sweep_override() else [text])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return (list(job) for job in itertools.product(*alternatives))


def _choices(override: Override, text: str, sources: Sources) -> list[str]:
    """One override for each value of a sweep."""
    key, _, value = text.partition("=")
    if override.is_interval_sweep():
        message = (
            "has no values to run, only a range: name them, as in "
            f"{key}=0.1,0.2 or {key}=range(1,4). rlexp-search draws from ranges."
        )
        raise ConfigError([Problem(key, message, value)])
    if override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        choices = list(override.sweep_string_iterator())
    else:
        pattern = override.value()
        assert isinstance(pattern, Glob)
        options = groups(sources).get(override.key_or_group)
        if options is None:
            raise ConfigError([Problem(key, "is no group of options, which glob(...) chooses from.", value)])
        choices = pattern.filter(list(options))
    if not choices:
        raise ConfigError([Problem(key, "has no values to run: nothing matches.", value)])
    return [f"{key}={choice}" for choice in choices]


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError([Problem(text, f"cannot be read as key=value: {reason}.")]) from error
