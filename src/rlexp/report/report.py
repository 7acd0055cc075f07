"""One report: from runs to numbers, and from these to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlexp.report import tables
from rlexp.report.grouping import Group, group_runs
from rlexp.report.results import ALL_ENVIRONMENTS, Comparison, Result, compare, registered_threshold, result_of
from rlexp.report.runs import ReportError, Run

Thresholds = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        groups: all groups, those without a counted run among them.
        results: one a group with counted runs, in the same order.
        comparisons: of variants in the same environments.
        unread: runs that belong to no group because their config cannot be read.
    """

    groups: tuple[Group, ...]
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    unread: tuple[Run, ...]

    @property
    def left_out(self) -> tuple[Run, ...]:
        """Every run whose numbers are in no average."""
        return (*(run for group in self.groups for run in group.left_out), *self.unread)

    @property
    def overall(self) -> Comparison | None:
        """The comparison over all environments, where there is one."""
        return next((c for c in self.comparisons if c.name == ALL_ENVIRONMENTS), None)


def make_report(runs: Sequence[Run], threshold: Thresholds = None, ignore: Sequence[str] = ()) -> Report:
    """Group runs and compute everything that a report says in numbers.

    Args:
        runs: as `load_runs` gives them.
        threshold: return to reach: for all environments, or by environment; None, and environments not named, take
            Gymnasium's registered reward threshold where there is one.
        ignore: settings that do not tell groups apart, besides the seed and `rlexp.config.NO_RESULTS`.

    Raises:
        ReportError: no run was completed.
    """
    groups = group_runs(runs, ignore)

    def chosen(group: Group) -> float | None:
        named = threshold.get(group.environment) if isinstance(threshold, Mapping) else threshold
        return registered_threshold(group) if named is None else named

    report = Report(
        groups=tuple(groups),
        results=tuple(result_of(group, chosen(group)) for group in groups if group.runs),
        comparisons=tuple(compare(groups)),
        unread=tuple(run for run in runs if not run.settings),
    )
    if not report.results:
        listed = "\n".join(f"  {run.path}: {run.status}{f', {run.problem}' if run.problem else ''}" for run in runs)
        raise ReportError(f"no run was completed, so there is nothing to average:\n{listed}\nFinish or rerun them.")
    return report


def markdown(report: Report) -> str:
    """The tables, and below them which runs they leave out."""
    parts = [tables.to_markdown(tables.results_table(report.results)), tables.NOTE]
    if report.overall is not None:
        parts += [
            f"Over {ALL_ENVIRONMENTS}, normalized scores:",
            tables.to_markdown(tables.aggregate_table(report.overall)),
        ]
    if report.left_out:
        parts += [
            "Not averaged, because the run was not completed, evaluated or readable, or was run again:",
            tables.to_markdown(tables.left_out_table(report.groups, report.unread)),
        ]
    return "\n\n".join(parts) + "\n"


def latex(report: Report) -> str:
    """The same tables for LaTeX, without the list of runs."""
    parts = [r"% \usepackage{booktabs}", tables.to_latex(tables.results_table(report.results))]
    if report.overall is not None:
        parts += [
            f"% over {ALL_ENVIRONMENTS}, normalized scores",
            tables.to_latex(tables.aggregate_table(report.overall)),
        ]
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the page, the tables and the pictures; files of an earlier report in the folder are replaced.

    Args:
        report: what to write.
        folder: made if it is not there.

    Returns:
        The files, the page first.
    """
    from rlexp.report.page import draw, render

    pictures = draw(report)
    files: dict[str, str | bytes] = {
        "index.html": render(report, pictures),
        "table.md": markdown(report),
        "table.tex": latex(report),
        "table.csv": tables.results_csv(report.results, report.groups),
        "runs.csv": tables.runs_csv(report.groups, report.unread),
    }
    if report.comparisons:
        files["improvement.csv"] = tables.comparisons_csv(report.comparisons)
    files |= {f"plots/{picture.file}.png": picture.png for picture in pictures}
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    # Pictures of an earlier report, of runs that are not in this one, would be taken for its own.
    for stale in [*(folder / "plots").glob("*.png"), folder / "improvement.csv"]:
        stale.unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [folder / name for name in files]
