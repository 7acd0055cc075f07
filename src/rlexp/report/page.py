"""The self-contained HTML page, and the pictures in it."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlexp.report import pictures, tables
from rlexp.report.report import Report
from rlexp.report.results import FEW_SEEDS

# A parallel-coordinates plot of two settings says less than the table.
_SETTINGS_TO_PLOT = 3


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        section: heading that it stands under.
        file: its file's name without the ending.
        title: what it shows, in words, for those who do not see it.
        png: its bytes.
    """

    section: str
    file: str
    title: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as an address that needs no network and no file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def draw(report: Report) -> list[Picture]:
    """Every picture that the runs give reason for, in the order of the page."""
    look = pictures.styles(dict.fromkeys(result.group.variant for result in report.results))
    drawn = []
    by_environment = {
        environment: [result for result in report.results if result.group.environment == environment]
        for environment in dict.fromkeys(result.group.environment for result in report.results)
    }
    names = _file_names([*by_environment, *(comparison.name for comparison in report.comparisons)])
    for environment, results in by_environment.items():
        png = pictures.learning_curves(environment, results, look)
        drawn.append(Picture("Learning curves", f"curves_{names[environment]}", f"Learning curves, {environment}", png))
    for comparison in report.comparisons:
        file, name = names[comparison.name], comparison.name
        profile = pictures.performance_profile(comparison, look)
        drawn.append(Picture("Performance profiles", f"profile_{file}", f"Performance profile, {name}", profile))
    for comparison in report.comparisons:
        file, name = names[comparison.name], comparison.name
        chances = pictures.probability_of_improvement(comparison, look)
        title = f"Probability of improvement, {name}"
        drawn.append(Picture("Probability of improvement", f"improvement_{file}", title, chances))
    for environment, results in by_environment.items():
        if len(results) > 2 and len(results[0].group.settings) >= _SETTINGS_TO_PLOT:
            png = pictures.parallel_coordinates(environment, results)
            drawn.append(
                Picture("Settings", f"settings_{names[environment]}", f"Settings and result, {environment}", png)
            )
    return drawn


def render(report: Report, drawn: Sequence[Picture]) -> str:
    """The page: one HTML file with its styles and pictures inside, that loads nothing."""
    loader = PackageLoader("rlexp.report", ".")
    template = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
    few = [result for result in report.results if result.seeds < FEW_SEEDS]
    sections: dict[str, list[Picture]] = {}
    for picture in drawn:
        sections.setdefault(picture.section, []).append(picture)
    return template.render(
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
        sections=sections,
        shown=pictures.SHOWN,
        crowded=max(Counter(result.group.environment for result in report.results).values()) > pictures.SHOWN,
        improvements=tables.improvement_table(report.comparisons),
        left_out=tables.left_out_table(report.groups, report.unread),
        settings=tables.settings_table(report.groups) if len(report.groups) > 1 else None,
        counted=tables.counted_table(report.groups),
        version=version("rlexp"),
    )


def _file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name for each name, told apart where two would be the same."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "environment"
        taken = sum(other == plain or other.startswith(f"{plain}-") for other in found.values())
        found[name] = f"{plain}-{taken + 1}" if taken else plain
    return found
