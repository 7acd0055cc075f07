"""Everything that a report says in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from rlexp.config import ConfigError, Problem
from rlexp.report.grouping import Group, group_runs
from rlexp.report.results import (
    Comparison,
    References,
    Result,
    absent_variants,
    compare,
    registered_threshold,
    result_of,
    tied_environments,
)
from rlexp.report.runs import ReportError, Run

REGISTERED: Literal["registered"] = "registered"

Thresholds = float | Mapping[str, float | None] | Literal["registered"] | None
"""The return to reach, for all environments or by environment: Gymnasium's registered reward threshold, or None."""


@dataclass(frozen=True)
class Report:
    """The numbers of a report.

    Attributes:
        groups: all groups, including those without a counted run.
        results: one per group with counted runs, in the same order.
        comparisons: of variants in the same environments.
        tied: environments that are in no comparison over environments, because all their final evaluations are equal.
        absent: variants that are in none, with the environments where they have no completed run.
        unread: runs that belong to no group because their config cannot be read.
        given: whether the references of the comparison over environments were given.
    """

    groups: tuple[Group, ...]
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    tied: tuple[str, ...]
    absent: Mapping[str, tuple[str, ...]]
    unread: tuple[Run, ...]
    given: bool = False

    @property
    def left_out(self) -> tuple[Run, ...]:
        """Every run whose numbers are in no average."""
        return (*(run for group in self.groups for run in group.left_out), *self.unread)

    @property
    def overall(self) -> Comparison | None:
        """The comparison over environments, where there is one."""
        return next((comparison for comparison in self.comparisons if comparison.normalized), None)


def make_report(
    runs: Sequence[Run],
    threshold: Thresholds = REGISTERED,
    ignore: Sequence[str] = (),
    reference: References | None = None,
) -> Report:
    """Group runs and compute every number of a report.

    Args:
        runs: as `load_runs` gives them.
        threshold: return to reach, for all environments or by environment; an environment that is not named takes
            Gymnasium's registered reward threshold where there is one.
        ignore: settings that do not separate groups, besides the seed and `rlexp.config.NO_RESULTS`.
        reference: for every environment the returns whose normalized scores are 0 and 1, such as those of random
            actions and of a published result; by default the lowest and the highest final evaluation.

    Raises:
        ConfigError: ``reference`` is wrong, or lacks an environment, or no run has one that it names.
        ReportError: no run was completed.
    """
    groups = group_runs(runs, ignore)
    if reference:
        _check(reference, {group.environment for group in groups})

    def chosen(group: Group) -> float | None:
        named = threshold.get(group.environment, REGISTERED) if isinstance(threshold, Mapping) else threshold
        return registered_threshold(group) if named == REGISTERED else named

    tied = () if reference else tied_environments(groups)
    report = Report(
        groups=tuple(groups),
        results=tuple(result_of(group, chosen(group)) for group in groups if group.runs),
        comparisons=tuple(compare(groups, reference)),
        tied=tied,
        absent=absent_variants(groups, tied),
        unread=tuple(run for run in runs if not run.settings),
        given=bool(reference),
    )
    if not report.results:
        listed = "\n".join(f"  {run.path}: {run.status}{f', {run.problem}' if run.problem else ''}" for run in runs)
        raise ReportError(f"no run was completed, so there is nothing to average:\n{listed}\nFinish or repeat them.")
    return report


def _check(reference: References, environments: Set[str]) -> None:
    problems = [
        Problem(
            f"reference.{name}", "the first return, score 0, must be below the second, score 1.", f"[{zero}, {one}]"
        )
        for name, (zero, one) in reference.items()
        if zero >= one
    ]
    unknown = f"no run has this environment. Available: {', '.join(sorted(environments))}."
    problems += [Problem(f"reference.{name}", unknown) for name in sorted(reference.keys() - environments)]
    missing = "is missing: with references every environment needs its own, the returns of the scores 0 and 1."
    problems += [Problem(f"reference.{name}", missing) for name in sorted(environments - reference.keys())]
    if problems:
        raise ConfigError(problems)
