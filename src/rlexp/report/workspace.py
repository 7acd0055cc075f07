"""A W&B workspace for the runs of a report, defined with wandb-workspaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as panels
from wandb_workspaces import expr
from wandb_workspaces.workspaces import RunsetSettings, Section, SectionPanelSettings, Workspace, WorkspaceSettings

from rlexp.loggers.local import read_metrics
from rlexp.report.report import Report
from rlexp.report.runs import METRIC, ReportError

_SECTIONS = {"eval": "Evaluation", "train": "Training", "loss": "Losses", "optim": "Losses", "time": "Throughput"}
# The x-axis, and a hash, which no plot makes sense of.
_NO_PANEL = {"frames", "train/parameters_hash"}


def workspace(report: Report) -> Any:
    """The dashboard: one line per W&B group, its mean over seeds, with a band from the lowest to the highest.

    Returns:
        A ``Workspace`` with a panel for each metric that the runs logged, and plots of the settings that differ; not
        saved.

    Raises:
        ReportError: the runs did not log to one W&B project.
    """
    found = {_project(run.settings) for group in report.groups for run in (*group.runs, *group.left_out)} - {None}
    if len(found) != 1:
        named = ", ".join(sorted(f"{entity or ''}/{project}".lstrip("/") for entity, project in filter(None, found)))
        raise ReportError(f"a workspace belongs to one W&B project; these runs logged to {named or 'none'}.")
    ((entity, project),) = filter(None, found)
    logged = [row.keys() for result in report.results for row in read_metrics(result.group.runs[0].path)]
    environments = {group.environment for group in report.groups}
    settings = [*(["env.name"] if len(environments) > 1 else []), *report.groups[0].settings]
    made = Workspace(
        entity=entity or "",
        project=project,
        name="rlexp",
        sections=[*_sections(set().union(*logged) - _NO_PANEL), _settings(settings)],
        settings=WorkspaceSettings(x_axis="frames", max_runs=100),
        runset_settings=RunsetSettings(
            groupby=[expr.Metric("Group")],
            pinned_columns=["run:displayName", f"summary:{METRIC}", *map(_column, settings)],
        ),
    )
    for place, panel in enumerate(panel for section in made.sections for panel in section.panels):
        panel._id = f"panel{place}"  # else random, and the same report would give another file each time
    return made


def to_json(made: Any) -> str:
    """A workspace in the format of W&B's server."""
    text: str = made._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return f"{text}\n"


def save(made: Any) -> str:
    """Save a workspace as a new view of its project.

    Returns:
        Its address.

    Raises:
        ReportError: no API key is configured, or the server refuses.
    """
    import wandb

    from rlexp.loggers.wandb_login import logged_in

    if not logged_in():
        raise ReportError("no W&B API key is configured; `wandb login` stores one.")
    try:
        made.entity = made.entity or wandb.Api().default_entity
        made.save()
    except Exception as error:  # wandb passes on what its transport raises
        raise ReportError(f"W&B did not take the workspace: {error}") from error
    return str(made.url)


def _project(settings: Any) -> tuple[str | None, str] | None:
    """The entity and project that a run logged to, whether W&B is its only logger or one of several."""
    key = next((key for key in settings if key.startswith("logger.") and key.endswith(".project")), None)
    return None if key is None else (settings.get(f"{key.removesuffix('project')}entity"), settings[key])


def _sections(metrics: Iterable[str]) -> list[Section]:
    named: dict[str, list[str]] = {section: [] for section in _SECTIONS.values()}
    for metric in sorted(metrics, key=lambda metric: (metric != METRIC, metric)):
        prefix = metric.partition("/")[0]
        named.setdefault(_SECTIONS.get(prefix, prefix), []).append(metric)
    frames = SectionPanelSettings(x_axis="frames")
    return [
        Section(name=name, panels=[_line(metric) for metric in of_section], is_open=True, panel_settings=frames)
        for name, of_section in named.items()
        if of_section
    ]


def _line(metric: str) -> Any:
    return panels.LinePlot(
        title=metric, x="frames", y=[metric], groupby="Group", groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


def _settings(keys: Sequence[str]) -> Section:
    columns = [*map(panels.Config, keys), panels.SummaryMetric(METRIC)]
    coordinates = [panels.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
    drawn = [
        panels.ParallelCoordinatesPlot(title=f"Settings and {METRIC}", columns=coordinates),
        panels.ParameterImportancePlot(with_respect_to=METRIC),
    ]
    return Section(name="Settings", panels=drawn, is_open=True)


def _column(key: str) -> str:
    node, _, setting = key.partition(".")
    return f"config:{node}.value.{setting}".rstrip(".")
