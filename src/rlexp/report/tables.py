"""The tables of a report as Markdown, LaTeX, CSV and plain text; the page uses them too."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlexp.report.grouping import Group
from rlexp.report.results import FEW_SEEDS, Comparison, Improvement, Result
from rlexp.report.runs import Run
from rlexp.report.statistics import AGGREGATES, Estimate
from rlexp.text import csv_cell, printable

NONE = "\N{EN DASH}"
AT_LEAST = "\N{GREATER-THAN OR EQUAL TO}"

_SIGNIFICANT = 0.05
_ROUNDING = 1e-9  # what is smaller is 0 but for rounding

NOTE = (
    "IQM is the interquartile mean; brackets are 95% percentile intervals of a stratified bootstrap over seeds, of "
    "each run's final evaluation (eval/return). (n=k) marks fewer than five seeds. best is the mean over seeds of "
    "each run's highest evaluation. Frames and seconds (collection and update) to the threshold are medians over "
    "seeds; a run that does not reach it counts as infinite. k of n seeds are averaged where the other runs are "
    "incomplete. p is of a permutation test without incomplete runs or with these ranked lowest, whichever is larger, "
    "adjusted for all pairs of all environments (Holm)."
)

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NONE: "--", AT_LEAST: r"$\geq$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # which LaTeX may take for arguments of what is before them
}  # fmt: skip


# Within a word an underscore is one, and a bracket means nothing without what follows it.
_MARKUP = re.compile(r"[\\`*<|~&$]|:(?=//)|(?<=www)\.|(?<!\w)_|_(?!\w)|!(?=\[)|(?<=\])[(\[:]")


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        columns: headings.
        rows: cells, as many in each row as there are columns.
        names: leading columns that hold names; the others hold numbers.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def number(value: float | None) -> str:
    """At least three significant digits: enough to compare by, few enough to read."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if _ROUNDING < size < 1e-4:
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")
    digits = 0 if size >= 10_000 else 1 if size >= 100 else 2 if size >= 10 else 3
    if _ROUNDING < size < 0.1:
        digits = 2 - math.floor(math.log10(size))
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}") if round(size, digits) else f"{0:.{digits}f}"


def whole(value: float | None) -> str:
    """Frames, seconds and rates: without decimals from 100 on."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{0 if abs(value) >= 100 else 1}f}"


def interval(estimate: Estimate, seeds: int) -> str:
    """``value [low, high]``, with the number of seeds where they are few."""
    text = number(estimate.value) if seeds >= FEW_SEEDS else f"{number(estimate.value)} (n={seeds})"
    return text if estimate.low is None else f"{text} [{number(estimate.low)}, {number(estimate.high)}]"


def results_table(results: Sequence[Result]) -> Table:
    """One row per group with counted runs; without columns of thresholds where no environment has one."""
    thresholds = any(result.threshold is not None for result in results)
    to_threshold = ("reached threshold", "frames to threshold", "seconds to threshold") if thresholds else ()
    rows = tuple(
        (
            result.group.name,
            _seeds(result.seeds, result.group.incomplete),
            interval(result.iqm, result.seeds),
            interval(result.mean, result.seeds),
            interval(result.median, result.seeds),
            number(result.best),
            *(_reached(result) if thresholds else ()),
            whole(result.fps),
        )
        for result in results
    )
    return Table(("configuration", "seeds", "IQM", "mean", "median", "best", *to_threshold, "frames/s"), rows)


def _seeds(counted: int, incomplete: int) -> str:
    return f"{counted} of {counted + incomplete}" if incomplete else str(counted)


def _reached(result: Result) -> tuple[str, str, str]:
    """How many runs reached the threshold, and the frames and seconds that they took."""
    of = NONE if result.threshold is None else f"{result.reached}/{result.seeds} {AT_LEAST} {result.threshold:,.10g}"
    return of, whole(result.frames_to_threshold), whole(result.seconds_to_threshold)


def aggregate_table(comparison: Comparison) -> Table:
    """One row per variant, over environments."""
    rows = []
    for variant, estimates in comparison.aggregates.items():
        scores = zip(map(len, comparison.scores[variant]), comparison.incomplete[variant], strict=True)
        seeds, incomplete = min(scores, key=lambda both: (both[0], -both[1]))
        cells = (interval(estimate, seeds) for estimate in estimates.values())
        rows.append((variant or "all runs", _seeds(seeds, incomplete), *cells))
    return Table(("configuration", "seeds", *AGGREGATES), tuple(rows))


def scale_note(overall: Comparison, given: bool) -> str:
    """What the normalized scores 0 and 1 are, and the aggregates that need a word."""
    returns = "; ".join(f"{env} {number(zero)} and {number(one)}" for env, (zero, one) in overall.references.items())
    of = "the returns given" if given else "the lowest and the highest final evaluation in this report"
    unequal = any(len(set(map(len, sample))) > 1 for sample in overall.scores.values())
    weights = " Environments have unequal numbers of runs; those with more weigh more in the IQM." if unequal else ""
    return printable(
        f"Normalized scores: 0 and 1 are {of} ({returns}). The median is that over environments of the mean over runs, "
        f"the optimality gap by how much runs miss 1 on average. Runs are resampled within their environment.{weights}"
    )


def improvement_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per pair of variants, in each comparison."""
    rows = []
    for comparison in comparisons:
        for pair in comparison.improvements:
            seeds = min(len(scores) for variant in (pair.x, pair.y) for scores in comparison.scores[variant])
            rows.append((comparison.name, pair.x, pair.y, interval(pair.probability, seeds), f"{pair.p:.2g}"))
    return Table(("environment", "X", "Y", "P(X > Y)", "p"), tuple(rows), names=3)


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence per pair of variants, in each comparison: which scores higher, and whether the seeds show it."""
    return [_verdict(comparison, pair) for comparison in comparisons for pair in comparison.improvements]


def _verdict(comparison: Comparison, pair: Improvement) -> str:
    seeds = min(len(scores) for variant in (pair.x, pair.y) for scores in comparison.scores[variant])
    if seeds < FEW_SEEDS:
        shown = f"fewer than {FEW_SEEDS} seeds are too few to tell"
    elif pair.p <= _SIGNIFICANT:
        shown = f"{pair.x if pair.probability.value > 0.5 else pair.y} scores higher"
    elif pair.least > _SIGNIFICANT:
        shown = "these seeds are too few to tell among so many pairs"
    else:
        shown = "these seeds do not show a difference"
    lost = {variant: sum(comparison.incomplete[variant]) for variant in (pair.x, pair.y)}
    left_out = "".join(f"; leaves out {n} incomplete run{'s' * (n > 1)} of {of}" for of, n in lost.items() if n)
    return printable(
        f"{comparison.name}: {shown} (P({pair.x} > {pair.y}) = {interval(pair.probability, seeds)}, "
        f"the probability that a run of the first ends higher than one of the second; p = {pair.p:.2g}{left_out})."
    )


def left_out_table(groups: Sequence[Group], unread: Sequence[Run]) -> Table:
    """The runs whose numbers are in no average, and why."""
    members = [(group.name, run) for group in groups for run in group.left_out] + [(NONE, run) for run in unread]
    rows = tuple(
        (name, _seed(run), run.status, f"{run.trained:,}", _reason(run) or NONE, str(run.path)) for name, run in members
    )
    return Table(("configuration", "seed", "status", "frames", "problem", "folder"), rows, names=6)


def damaged_table(groups: Sequence[Group]) -> Table:
    """The runs that are averaged although something is missing from their files."""
    rows = tuple(
        (group.name, _seed(run), run.damage, str(run.path)) for group in groups for run in group.runs if run.damage
    )
    return Table(("configuration", "seed", "damage", "folder"), rows, names=4)


def mixed_table(groups: Sequence[Group]) -> Table:
    """The groups whose averaged runs differ in what is no setting: commit, versions, and budgets before a resume."""
    rows = []
    for group in groups:
        names = dict.fromkeys(name for run in group.runs for name in run.origin)
        counts = {name: Counter(run.origin[name] for run in group.runs if name in run.origin) for name in names}
        if without := [run for run in group.runs if "commit" in names and "commit" not in run.origin]:
            counts["commit"]["unknown"] = len(without)
        differing = "; ".join(
            f"{name}: {', '.join(f'{value} ({runs})' for value, runs in of.items())}"
            for name, of in counts.items()
            if len(of) > 1
        )
        if differing:
            rows.append((group.name, differing))
    return Table(("configuration", "value (runs)"), tuple(rows), names=2)


def overall_note(overall: Comparison | None, tied: Sequence[str], absent: Mapping[str, Sequence[str]]) -> str:
    """Which environments and variants are in no comparison over environments, and why; empty where all are."""
    return " ".join(filter(None, (_tied_note(overall, tied), _absent_note(overall, absent))))


def _absent_note(overall: Comparison | None, absent: Mapping[str, Sequence[str]]) -> str:
    if not absent:
        return ""
    shown = "; ".join(f"{name or 'all runs'} has no completed run in {', '.join(of)}" for name, of in absent.items())
    where = "There is no comparison" if overall is None else f"The comparison over {overall.name} leaves some out"
    return printable(f"{where}{' over environments' if overall is None else ''}: {shown}.")


def _tied_note(overall: Comparison | None, tied: Sequence[str]) -> str:
    if not tied:
        return ""
    reason = f"all final evaluations are equal in {', '.join(tied)}, so that no score can be normalized."
    if overall is None:
        return f"There is no comparison over environments that includes these: {reason}"
    return f"The comparison over {overall.name} leaves some out: {reason}"


def counted_table(groups: Sequence[Group]) -> Table:
    """Every run whose numbers count."""
    rows = tuple(
        (group.name, _seed(run), number(run.final), number(run.best), f"{run.trained:,}", whole(run.fps), str(run.path))
        for group in groups
        for run in group.runs
    )
    return Table(("configuration", "seed", "final", "best", "frames", "frames/s", "folder"), rows)


def settings_table(groups: Sequence[Group]) -> Table:
    """The settings that are not the same in all groups, one row per group."""
    keys = sorted(set().union(*(group.differing for group in groups)))
    rows = tuple((group.name, *(group.differing[key] for key in keys)) for group in groups)
    return Table(("configuration", *keys), rows, names=len(keys) + 1)


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, padded so that it also reads well as plain text."""
    cells = [[markdown_text(cell) for cell in row] for row in _cells(table)]
    widths, aligned = _aligned(cells, table.names, narrowest=3)
    rule = ["-" * width if i < table.names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (aligned[0], rule, *aligned[1:]))


def markdown_text(text: str) -> str:
    """Text as Markdown shows it: no markup in it, no HTML, no link or image."""
    return _MARKUP.sub(r"\\\g<0>", text)


def to_text(table: Table) -> list[str]:
    """Lines for a terminal."""
    _, aligned = _aligned(_cells(table), table.names)
    return ["  ".join(row).rstrip() for row in aligned]


def _cells(table: Table) -> list[list[str]]:
    """Headings and rows, each cell on one line, with nothing in it that a terminal would obey."""
    return [[printable(cell.replace("\n", " ")) for cell in row] for row in (table.columns, *table.rows)]


def to_latex(table: Table) -> str:
    """A ``tabular`` with the rules of the booktabs package."""
    columns, *rows = _cells(table)
    lines = [
        rf"\begin{{tabular}}{{{'l' * table.names}{'r' * (len(table.columns) - table.names)}}}",
        r"\toprule",
        _latex_row(columns),
        r"\midrule",
        *map(_latex_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def results_csv(results: Sequence[Result], groups: Sequence[Group]) -> str:
    """The table in full precision, with a column for each setting that differs; empty where there is no number.

    Args:
        results: of the groups with counted runs.
        groups: all groups; those without counted runs have a row with their names and counts only.
    """
    by_name = {result.group.name: result for result in results}
    settings = sorted(set().union(*(group.differing for group in groups)))
    rows = []
    for group in groups:
        row: dict[str, object] = {"group": group.name, "environment": group.environment}
        row |= {f"setting:{key}": group.differing[key] for key in settings}
        row |= {"seeds": len(group.runs), "incomplete": group.incomplete, "left_out": len(group.left_out)}
        result = by_name.get(group.name)
        for kind in ("iqm", "mean", "median"):
            found = Estimate(math.nan) if result is None else getattr(result, kind)
            row |= {kind: found.value, f"{kind}_low": found.low, f"{kind}_high": found.high}
        for kind in ("best", "threshold", "reached", "frames_to_threshold", "seconds_to_threshold", "fps"):
            row[kind] = None if result is None else getattr(result, kind)
        rows.append(row)
    return _csv(rows)


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """Every probability of improvement in full precision."""
    return _csv(
        [
            {
                "environments": " ".join(comparison.environments),
                "x": pair.x,
                "y": pair.y,
                "probability": pair.probability.value,
                "low": pair.probability.low,
                "high": pair.probability.high,
                "p": pair.p,
            }
            for comparison in comparisons
            for pair in comparison.improvements
        ]
    )


def runs_csv(groups: Sequence[Group], unread: Sequence[Run]) -> str:
    """Every run, counted or not, with its own numbers."""
    members = [(group.name, run) for group in groups for run in (*group.runs, *group.left_out)]
    members += [("", run) for run in unread]
    return _csv(
        [
            {
                "group": name,
                "seed": run.seed,
                "status": run.status,
                "commit": run.origin.get("commit"),
                "frames": run.trained,
                "final": run.final if run.returns.size else None,
                "best": run.best if run.returns.size else None,
                "fps": run.fps,
                "problem": _reason(run),
                "folder": str(run.path),
            }
            for name, run in members
        ]
    )


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in (list(rows[0]), *(row.values() for row in rows)):
        # One line per row: a line within a cell could pass for a row of its own.
        writer.writerow(csv_cell(cell.replace("\n", " ") if isinstance(cell, str) else cell) for cell in row)
    return file.getvalue()


def _reason(run: Run) -> str:
    """Why a run is in no average, or what is wrong with one that is."""
    return "; ".join(filter(None, (run.problem, run.damage)))


def _seed(run: Run) -> str:
    return NONE if run.seed is None else str(run.seed)


def _aligned(cells: Sequence[Sequence[str]], names: int, narrowest: int = 0) -> tuple[list[int], list[list[str]]]:
    """The width of each column, and the cells padded to it: names to the left, numbers to the right."""
    widths = [max(narrowest, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    return widths, [
        [
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_latex_text(cell) for cell in cells) + r" \\"


def _latex_text(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"\N{MINUS SIGN}([\d.,]+)", r"$-$\1", escaped)
