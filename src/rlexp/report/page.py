"""The report as one self-contained HTML page, and the figures on it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlexp.plots import default_style
from rlexp.report import charts, figures, tables
from rlexp.report.report import Report
from rlexp.report.results import FEW_SEEDS, Curve, learning_curve
from rlexp.text import printable

# With fewer settings, the table says more than a plot of parallel coordinates.
_SETTINGS_TO_PLOT = 3
_LONGEST_FILE_NAME = 80  # characters


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        section: heading that it stands under.
        file: name of its file, without the ending.
        title: what it shows, for readers who cannot see it.
        png: the image.
    """

    section: str
    file: str
    title: str
    png: bytes

    @property
    def source(self) -> str:
        """The image as a ``data:`` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


Curves = Mapping[str, Sequence[Curve]]


def learning_curves(report: Report) -> Curves:
    """The learning curves of each environment, best first."""
    found: dict[str, list[Curve]] = {}
    for result in figures.best_first(report.results):
        found.setdefault(result.group.environment, []).append(learning_curve(result))
    return {environment: found[environment] for environment in sorted(found)}


@default_style()
def draw(report: Report, curves: Curves) -> list[ReportFigure]:
    """Draw every figure that the runs allow, in the order of the page."""
    look = figures.styles(dict.fromkeys(result.group.variant for result in report.results))
    by_environment = {environment: [curve.result for curve in of] for environment, of in curves.items()}
    names = _file_names([*by_environment, *(comparison.name for comparison in report.comparisons)])
    drawn: list[ReportFigure] = []

    def add(section: str, prefix: str, kind: str, name: str, png: bytes) -> None:
        drawn.append(ReportFigure(section, f"{prefix}_{names[name]}", f"{kind}, {name}", png))

    for environment, of_environment in curves.items():
        png = figures.learning_curves(environment, of_environment, look)
        add("Learning curves", "curves", "Learning curves", environment, png)
    for comparison in report.comparisons:
        png = figures.performance_profile(comparison, look)
        add("Performance profiles", "profile", "Performance profile", comparison.name, png)
    for comparison in (comparison for comparison in report.comparisons if comparison.improvements):
        png = figures.probability_of_improvement(comparison, look)
        add("Probability of improvement", "improvement", "Probability of improvement", comparison.name, png)
    for environment, results in by_environment.items():
        if len(results) > 2 and len(results[0].group.settings) >= _SETTINGS_TO_PLOT:
            png = figures.parallel_coordinates(environment, results)
            add("Settings", "settings", "Settings and result", environment, png)
    return drawn


def _chart(environment: str, curves: Sequence[Curve], variants: Sequence[str]) -> charts.Drawn:
    """The learning curves of one environment, with a thin line for each run behind that of its configuration."""
    runs, means, groups = [], [], {}
    for curve in curves:
        group = curve.result.group
        place = variants.index(group.variant)
        groups[place] = group.variant or environment
        for run in group.runs if len(group.runs) > 1 else ():
            name = ", ".join(filter(None, (group.variant, f"seed {run.seed}", run.path.name)))
            runs.append(charts.Line(name, run.frames, run.returns, place, thin=True))
        means.append(charts.Line(group.variant, curve.frames, curve.middle, place, low=curve.low, high=curve.high))
    return charts.drawn(
        charts.Chart(
            environment,
            "evaluation return",
            [*runs, *reversed(means)],
            groups,
            frozenset(list(groups)[figures.SHOWN :]),
            figures.thresholds(curves),
        )
    )


def render(report: Report, drawn: Sequence[ReportFigure], curves: Curves) -> str:
    """The page: one HTML file with its styles and figures inside, which loads nothing."""
    variants = list(dict.fromkeys(result.group.variant for result in report.results))
    few = [result for result in report.results if result.seeds < FEW_SEEDS]
    sections: dict[str, list[ReportFigure]] = {}
    for figure in drawn:
        sections.setdefault(figure.section, []).append(figure)
    return html(
        "page.html.j2",
        curves=[_chart(environment, of, variants) for environment, of in curves.items()],
        counts={
            "environment": len({group.environment for group in report.groups}),
            "configuration": len(report.groups),
            "averaged run": sum(result.seeds for result in report.results),
            "run left out": len(report.left_out),
        },
        few=few,
        empty=[group for group in report.groups if not group.runs],
        few_seeds=FEW_SEEDS,
        note=tables.NOTE,
        results=tables.results_table(report.results),
        overall=None if report.overall is None else tables.aggregate_table(report.overall),
        scale_note=None if report.overall is None else tables.scale_note(report.overall, report.given),
        overall_note=tables.overall_note(report.overall, report.tied, report.absent),
        sections=sections,
        shown=figures.SHOWN,
        crowded=max(Counter(result.group.environment for result in report.results).values()) > figures.SHOWN,
        improvements=tables.improvement_table(report.comparisons),
        left_out=tables.left_out_table(report.groups, report.unread),
        damaged=tables.damaged_table(report.groups),
        mixed=tables.mixed_table(report.groups),
        settings=tables.settings_table(report.groups) if len(report.groups) > 1 else None,
        counted=tables.counted_table(report.groups),
    )


def html(template: str, **values: object) -> str:
    """A page from its template: every text in it is escaped, and only its own script may run."""
    environment = Environment(
        loader=PackageLoader("rlexp.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_controls,
    )
    script = (files("rlexp.report") / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **values,
        style=charts.style,
        script_text=Markup(script),
        script_hash=f"sha256-{digest}",
        version=version("rlexp"),
    )


def _without_controls(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value, keep="\n")


def _file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for each name, numbered where two would be the same."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower())[:_LONGEST_FILE_NAME].strip("_") or "environment"
        taken = sum(other == plain or other.startswith(f"{plain}-") for other in found.values())
        found[name] = f"{plain}-{taken + 1}" if taken else plain
    return found
