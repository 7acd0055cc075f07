"""A report as text and as files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rlexp.files import write_bytes, write_text
from rlexp.report import tables
from rlexp.report.report import Report

_LIST = ".rlexp-report"
_ALWAYS = ("index.html", "table.md", "table.tex", "table.csv", "runs.csv")


def markdown(report: Report) -> str:
    """The tables, what they show of each pair of configurations, and the runs that they leave out."""
    parts = [tables.to_markdown(tables.results_table(report.results)), tables.NOTE]
    if verdicts := tables.verdicts(report.comparisons):
        parts.append("\n".join(f"- {tables.markdown_text(verdict)}" for verdict in verdicts))
    if report.overall is not None:
        parts.append(f"Over {report.overall.name}, normalized scores:")
        parts.append(tables.to_markdown(tables.aggregate_table(report.overall)))
        parts.append(tables.markdown_text(tables.scale_note(report.overall, report.given)))
    if note := tables.overall_note(report.overall, report.tied, report.absent):
        parts.append(tables.markdown_text(note))
    if (damaged := tables.damaged_table(report.groups)).rows:
        parts += ["Averaged, although files of the run are damaged:", tables.to_markdown(damaged)]
    if (mixed := tables.mixed_table(report.groups)).rows:
        parts += ["Averaged, although the runs were made with different code or budgets:", tables.to_markdown(mixed)]
    if report.left_out:
        parts.append("Not averaged, because the run was not completed, evaluated or readable, or was run again:")
        parts.append(tables.to_markdown(tables.left_out_table(report.groups, report.unread)))
    return "\n\n".join(parts) + "\n"


def latex(report: Report) -> str:
    """The same tables for LaTeX, without the lists of runs."""
    parts = [r"% \usepackage{booktabs}", tables.to_latex(tables.results_table(report.results))]
    if report.overall is not None:
        parts.append(f"% over {report.overall.name}, normalized scores")
        parts.append(tables.to_latex(tables.aggregate_table(report.overall)))
    return "\n\n".join(parts) + "\n"


def write_report(
    report: Report, folder: Path, page: str | None = None, others: Mapping[str, str] | None = None
) -> list[Path]:
    """Write the page, the tables and the figures; files of an earlier report in the folder are replaced.

    Args:
        report: what to write.
        folder: made if it is not there.
        page: in place of the report's own; None writes that.
        others: further files, by their names.

    Returns:
        The files, the page first.

    Raises:
        OSError: the folder cannot be written, or has files of such names that no report wrote.
    """
    # matplotlib and jinja2 take a second to import, which `rlexp-report --watch` should not wait for.
    from rlexp.report.page import draw, learning_curves, render

    curves = learning_curves(report)
    figures = draw(report, curves)
    files: dict[str, str | bytes] = {
        "index.html": render(report, figures, curves) if page is None else page,
        "table.md": markdown(report),
        "table.tex": latex(report),
        "table.csv": tables.results_csv(report.results, report.groups),
        "runs.csv": tables.runs_csv(report.groups, report.unread),
    }
    if any(comparison.improvements for comparison in report.comparisons):
        files["improvement.csv"] = tables.comparisons_csv(report.comparisons)
    files |= {f"plots/{figure.file}.png": figure.png for figure in figures}
    files |= others or {}
    return _replace(folder, files)


def write_page(page: str, folder: Path) -> Path:
    """Write a page alone; an earlier report in the folder is removed.

    Raises:
        OSError: as `write_report`.
    """
    (written,) = _replace(folder, {"index.html": page})
    return written


def _replace(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write a report in place of an earlier one, whose figures may be of other runs; nothing else is lost."""
    listing, plots = folder / _LIST, folder / "plots"
    if plots.is_symlink():
        raise FileExistsError(f"{plots} is a link")
    earlier = set(files) if all((folder / name).is_file() for name in _ALWAYS) else set()  # before reports had a list
    if listing.is_file():
        names = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        earlier = {name for name in names if re.fullmatch(r"(plots/)?\w[^/\\]*\.(html|md|tex|csv|png|json)", name)}
    if taken := [name for name in files if name not in earlier and os.path.lexists(folder / name)]:
        raise FileExistsError(f"it has a file {taken[0]}, which is of no report: choose a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("plots/") for name in files):
        plots.mkdir(exist_ok=True)
    # Whatever cannot be written, the earlier report is whole until all of the new one is there.
    for name, content in files.items():
        whole = content.encode(errors="backslashreplace") if isinstance(content, str) else content
        write_bytes(_aside(folder / name), whole)
    write_text(listing, "".join(f"{name}\n" for name in sorted({*files, *earlier})))
    for name in files:
        _aside(folder / name).replace(folder / name)
    for name in earlier - files.keys():
        (folder / name).unlink(missing_ok=True)
    write_text(listing, "".join(f"{name}\n" for name in files))
    return [folder / name for name in files]


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
