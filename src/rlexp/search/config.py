"""Settings of a search: the schema of the ``search`` group. Imports neither torch nor Optuna."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from rlexp.config import Config, ConfigError, Count, Fraction, Integer, Node, Problem, read
from rlexp.config.trust import RESOLVED, calls_a_resolver
from rlexp.experiment import read_config
from rlexp.machine import usable_cpus

_ENTRY = {"low", "high", "log", "choices"}
_NAME = re.compile(r"\w[\w-]*")  # of a folder

S = TypeVar("S", bound=Config)


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
            if len({json.dumps(choice) for choice in self.stored}) < 2:
                yield Problem("choices", "needs two different values or more.", json.dumps(self.stored))
        elif self.low is None or self.high is None:
            yield Problem("low" if self.low is None else "high", "is missing: give low and high, or choices.")
        elif self.low >= self.high:
            yield Problem("low", f"must be less than high, which is {self.high}.", str(self.low))
        elif self.log and self.low <= 0:
            yield Problem("low", "must be greater than 0 on a logarithmic scale.", str(self.low))

    @property
    def extremes(self) -> list[Any]:
        """The values to check before a search begins: the ends of a range and, of numbers, one between; or choices."""
        if self.choices is not None:
            return [plain(choice) for choice in self.choices]
        if self.low is None or self.high is None or (isinstance(self.low, int) and isinstance(self.high, int)):
            return [self.low, self.high]
        return [self.low, self.high, self.low + (self.high - self.low) / math.e]  # as most draws, no whole number

    @property
    def stored(self) -> list[Any]:
        """The choices as a study can store them: lists and mappings as JSON."""
        made = [plain(choice) for choice in self.choices or ()]
        return [json.dumps(value) if isinstance(value, list | dict) else value for value in made]

    def allows(self, value: object) -> bool:
        """Whether a value that a study has stored is one of the candidates."""
        if self.choices is not None:
            return any(type(value) is type(choice) and value == choice for choice in self.stored)
        assert self.low is not None
        assert self.high is not None
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return isinstance(value, int if whole else float) and self.low <= value <= self.high


def plain(choice: Any) -> Any:
    """A choice as YAML and JSON have it."""
    return choice.to_dict() if isinstance(choice, Node) else choice


class TaskConfig(Config):
    """One of the tasks that a search scores settings on.

    Attributes:
        overrides: what selects it, as after ``rlexp-train``.
        random: the return that scores 0, such as the mean return of random actions.
        reference: the return that scores 1, such as a published result. Without the two a return is its own score.
    """

    overrides: list[str]
    random: float | None = None
    reference: float | None = None

    def problems(self) -> Iterator[Problem]:
        """A scale has two ends."""
        if (self.random is None) != (self.reference is None):
            missing, other = ("random", "reference") if self.random is None else ("reference", "random")
            yield Problem(missing, f"is missing: a scale has both, and {other} is given.")
        elif self.random is not None and self.reference is not None and self.random >= self.reference:
            yield Problem("random", f"must be less than reference, which is {self.reference}.", str(self.random))

    def score(self, mean_return: float) -> float:
        """A return on the task's scale."""
        if self.random is None or self.reference is None:
            return mean_return
        return (mean_return - self.random) / (self.reference - self.random)


class SearchConfig(Config):
    """A search over hyperparameters.

    Attributes:
        trials: number of trials, including those that are pruned or fail.
        seeds: training seeds of each trial; its score is the mean over them, and over tasks, of the final evaluation's
            mean return on the task's scale.
        first_seed: the first of these seeds.
        confirm: the trials with the highest scores that are trained again on fresh seeds, which name the winner; with 0
            it is the trial with the highest score.
        confirm_seeds: number of fresh seeds, which follow those of the trials.
        workers: runs that are trained at once.
        startup: trials with random settings, before the sampler learns from them and the pruner compares with them.
        prune: whether to stop a trial whose best evaluation is below the median of the other trials at the same frames.
        warmup: fraction of a run's frames before which no trial is pruned.
        seed: seed of the sampler.
        tasks: the tasks by name; empty where the experiment is the only one.
        space: the candidates for each setting, by its full path.
    """

    trials: Count
    seeds: Count
    first_seed: Annotated[Integer, Field(ge=0)]
    confirm: Annotated[Integer, Field(ge=0)]
    confirm_seeds: Count
    workers: Count
    startup: Count
    prune: bool
    warmup: Fraction
    seed: Annotated[Integer, Field(ge=0, lt=2**32)]
    tasks: dict[str, TaskConfig]
    space: dict[str, CandidatesConfig]

    @property
    def scored_on(self) -> Mapping[str, TaskConfig]:
        """The tasks; the experiment alone is one without a name."""
        return self.tasks or {"": TaskConfig(overrides=[])}

    @property
    def screening_seeds(self) -> range:
        """The seeds of every trial."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def fresh_seeds(self) -> range:
        """The seeds of the confirmation."""
        return range(self.screening_seeds.stop, self.screening_seeds.stop + self.confirm_seeds)


class _Root(Config):
    """The level above the group, so that problems are reported under its name."""

    search: SearchConfig


def read_search(
    values: Mapping[str, Any],
    experiment: Callable[[Sequence[str]], Mapping[str, Any]],
    trust: Collection[str] | None = None,
) -> SearchConfig:
    """Check the settings of a search, and that the experiment of each task allows every value that may be tried.

    Args:
        values: the ``search`` group, its space nested as the config is.
        experiment: plain values of the experiment with a task's overrides, valid in itself; may raise `ConfigError`.
        trust: None where the values are the user's own; for those of a search's folder, the packages that they may
            import beside what rlexp itself builds (docs/security.md).

    Raises:
        ConfigError: with every problem found, settings under ``search.space``.
    """
    problems: list[Problem] = []
    space = _read_each(CandidatesConfig, "space", dict(_entries(values.get("space") or {})), problems)
    tasks = _read_each(TaskConfig, "tasks", values.get("tasks") or {}, problems)
    problems += _task_problems(tasks)
    try:
        settings = read(_Root, {"search": {**values, "space": {}, "tasks": {}}}).search
    except ConfigError as error:
        problems += error.problems
    else:
        if settings.workers > usable_cpus():
            message = f"must be from 1 to {usable_cpus()}, the cores of this machine."
            problems.append(Problem("search.workers", message, str(settings.workers)))
    if "seed" in space:
        problems.append(Problem("search.space.seed", "cannot be searched: a score is the mean over search.seeds."))
    if not space and not problems:
        problems.append(Problem("search.space", "is empty: there is nothing to search."))
    if tasks or not values.get("tasks"):
        for name, overrides in ({name: task.overrides for name, task in tasks.items()} or {"": []}).items():
            try:
                composed = experiment(overrides)
            except ConfigError as error:
                problems += [_of_task(problem, name) for problem in error.problems]
                continue
            for key, candidates in space.items():
                problems += _refused(key, candidates, composed, trust)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return settings.model_copy(update={"space": space, "tasks": tasks})


def _read_each(schema: type[S], group: str, entries: object, problems: list[Problem]) -> dict[str, S]:
    """Entries without a ``_target_``, by name; what is wrong with them is added to the problems."""
    found: dict[str, S] = {}
    for name, entry in entries.items() if isinstance(entries, Mapping) else [("", entries)]:
        key = f"search.{group}.{name}".rstrip(".")
        if not isinstance(entry, Mapping):
            problems.append(Problem(key, f"must have the entries {', '.join(schema.model_fields)}.", str(entry)))
            continue
        try:
            found[str(name)] = read(schema, entry)
        except ConfigError as error:
            problems += [problem.under(f"{key}.") for problem in error.problems]
    return found


def _task_problems(tasks: Mapping[str, TaskConfig]) -> Iterator[Problem]:
    for name, task in tasks.items():
        if not _NAME.fullmatch(name):
            yield Problem(f"search.tasks.{name}", "is no name of a folder: letters, digits, _ and - make one.")
        if len(tasks) > 1 and task.random is None:
            message = (
                "is missing: the returns of several tasks have a common scale only if each has random and reference."
            )
            yield Problem(f"search.tasks.{name}.random", message)


def _of_task(problem: Problem, name: str) -> Problem:
    if not name:
        return problem
    given = problem.key if problem.value is None else f"{problem.key}={problem.value}"
    return Problem(f"search.tasks.{name}", f"{given}: {problem.message}")


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
        if trust is not None and "hydra" not in trust and calls_a_resolver(json.dumps(value)):
            yield Problem(f"search.space.{key}", RESOLVED, str(value)[:60])
            continue
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
