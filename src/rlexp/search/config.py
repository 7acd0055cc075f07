"""Settings of a search: the schema of the ``search`` group. Imports neither torch nor Optuna."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from rlexp.config import Config, ConfigError, Count, Fraction, Integer, Problem, read
from rlexp.experiment import read_config

_ENTRY = {"low", "high", "log", "choices"}


class CandidatesConfig(Config):
    """The values that one setting may take: a range or choices.

    Attributes:
        low: smallest value.
        high: largest value; if both ends are whole numbers, every value is one.
        log: whether values are drawn uniformly on a logarithmic scale.
        choices: values in place of a range.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None

    def problems(self) -> Iterator[Problem]:
        """Either a range or choices, with at least two values."""
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                yield Problem("choices", "stands alone: low, high and log describe a range.")
            if len({json.dumps(choice) for choice in self.choices}) < 2:
                yield Problem("choices", "needs two different values or more.", json.dumps(self.choices))
        elif self.low is None or self.high is None:
            yield Problem("low" if self.low is None else "high", "is missing: give low and high, or choices.")
        elif self.low >= self.high:
            yield Problem("low", f"must be less than high, which is {self.high}.", str(self.low))
        elif self.log and self.low <= 0:
            yield Problem("low", "must be greater than 0 on a logarithmic scale.", str(self.low))

    @property
    def extremes(self) -> list[Any]:
        """The values to check: if these are allowed, so are all others."""
        return [self.low, self.high] if self.choices is None else self.choices


class SearchConfig(Config):
    """A search over hyperparameters.

    Attributes:
        trials: number of trials, including those that are pruned or fail.
        seeds: training seeds of each trial, from 0; its score is the mean of their final evaluations' mean returns.
        startup: trials with random settings, before the sampler learns from them and the pruner compares with them.
        prune: whether to stop a trial whose best evaluation is below the median of the other trials at the same frames.
        warmup: fraction of a run's frames before which no trial is pruned.
        seed: seed of the sampler.
        space: the candidates for each setting, by its full path.
    """

    trials: Count
    seeds: Count
    startup: Count
    prune: bool
    warmup: Fraction
    seed: Annotated[Integer, Field(ge=0, lt=2**32)]
    space: dict[str, CandidatesConfig]


class _Root(Config):
    """The level above the group, so that problems are reported under its name."""

    search: SearchConfig


def read_search(
    values: Mapping[str, Any], experiment: Mapping[str, Any], trust: Collection[str] | None = None
) -> SearchConfig:
    """Check the settings of a search, and that the experiment allows every value that may be tried.

    Args:
        values: the ``search`` group, its space nested as the config is.
        experiment: plain values of the experiment that the settings belong to, valid in itself.
        trust: None where the values are the user's own; for those of a search's folder, the packages that they may
            import beside what rlexp itself builds (docs/security.md).

    Raises:
        ConfigError: with every problem found, settings under ``search.space``.
    """
    problems: list[Problem] = []
    space: dict[str, CandidatesConfig] = {}
    for key, entry in _entries(values.get("space") or {}):
        try:
            space[key] = read(CandidatesConfig, entry)
        except ConfigError as error:
            problems += [problem.under(f"search.space.{key}.") for problem in error.problems]
    try:
        settings = read(_Root, {"search": {**values, "space": {}}}).search
    except ConfigError as error:
        problems += error.problems
    for key, candidates in space.items():
        problems += dict.fromkeys(_refused(key, candidates, experiment, trust))
    if "seed" in space:
        problems.append(Problem("search.space.seed", "cannot be searched: a score is the mean over search.seeds."))
    if not space and not problems:
        problems.append(Problem("search.space", "is empty: there is nothing to search."))
    if problems:
        raise ConfigError(problems)
    return settings.model_copy(update={"space": space})


def _entries(node: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a nested space, each under its setting's full path."""
    if not isinstance(node, Mapping):
        yield path, {"choices": [node]}
    elif _ENTRY & node.keys():
        yield path, node
    else:
        for key, below in node.items():
            yield from _entries(below, f"{path}.{key}" if path else str(key))


def _refused(
    key: str, candidates: CandidatesConfig, experiment: Mapping[str, Any], trust: Collection[str] | None
) -> Iterator[Problem]:
    for value in candidates.extremes:
        try:
            read_config(_with(experiment, key.split("."), value), trust)
        except ConfigError as error:
            for problem in error.problems:
                reported = (
                    problem if problem.key == key else Problem(key, f"{problem.key}: {problem.message}", str(value))
                )
                yield reported.under("search.space.")


def _with(values: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    changed = copy.deepcopy(dict(values))
    node = changed
    for name in path[:-1]:
        below = node.setdefault(name, {})
        if not isinstance(below, dict):
            below = node[name] = {}
        node = below
    node[path[-1]] = value
    return changed
