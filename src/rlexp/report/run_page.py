"""The page of one run: its plots and video, the settings that differ from the defaults, commands for the next steps."""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlexp.config import load
from rlexp.experiment import own_packages
from rlexp.plots import TRAINING_PLOTS
from rlexp.report import charts
from rlexp.report.page import html
from rlexp.report.runs import (
    COMPLETED,
    METRIC,
    UNREADABLE,
    ReportError,
    Run,
    UnreadableError,
    flatten,
    is_number,
    read_json,
    read_rows,
)
from rlexp.report.tables import NONE, Table, number, whole
from rlexp.runs.rundir import RunDir

_LARGEST_VIDEO = 20 * 2**20  # bytes
_NO_CHART = ("frames", "train/parameters_hash", *(plot.metric for plot in TRAINING_PLOTS))
_ORIGIN = ("command", "started", "git", "versions", "hardware", "device", "threads", "resources")


def run_page(run: Run) -> str:
    """The page of one run, finished or not: one HTML file that loads nothing.

    Raises:
        ReportError: its files cannot be read.
    """
    if run.status == UNREADABLE:
        raise ReportError(run.problem)
    layout = RunDir(run.path)
    try:
        rows = read_rows(layout.metrics, torn=run.status != COMPLETED) if layout.metrics.exists() else []
    except UnreadableError as error:
        raise ReportError(str(error)) from error
    video, left_out = _video(layout.videos)
    names = dict.fromkeys(
        name for row in rows for name in row if name not in _NO_CHART and not name.startswith("time/")
    )
    training = [_chart(rows, plot.metric, plot.title, plot.unit, int(plot.marked)) for plot in TRAINING_PLOTS]
    others = [_chart(rows, name, name, "", int(name.startswith("eval/"))) for name in names]
    return html(
        "run.html.j2",
        name=str(run.settings.get("env.name", run.path.name)),
        run=run,
        tiles=_tiles(run, rows),
        training=[chart for chart in training if chart],
        others=[chart for chart in others if chart],
        evaluations=_evaluations(rows),
        video=video,
        video_left_out=left_out,
        settings=_changed_settings(run.settings),
        commands=_commands(run),
        origin=_origin(layout.metadata),
    )


def _tiles(run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    evaluated = bool(run.returns.size)
    total = run.settings.get("total_frames")
    seconds = sum(rows[-1].get(f"time/{kind}", 0.0) for kind in ("collect", "update", "eval")) if rows else math.nan
    return {
        "status": run.status,
        f"of {total:,} frames" if isinstance(total, int) else "frames": f"{run.trained:,}",
        "last evaluation return": number(run.final) if evaluated else NONE,
        "best evaluation return": number(run.best) if evaluated else NONE,
        "seconds": whole(seconds),
        "frames/s, evaluation not counted": whole(run.fps),
    }


def _chart(rows: Sequence[Mapping[str, Any]], metric: str, title: str, unit: str, group: int) -> charts.Drawn | None:
    """A metric over frames; None where no row has a number of it."""
    points = np.array([(row["frames"], row[metric]) for row in rows if _finite(row.get(metric))], dtype=float)
    if not points.size:
        return None
    return charts.drawn(charts.Chart(title, unit, [charts.Line("", points[:, 0], points[:, 1], group)]))


def _finite(value: object) -> bool:
    return is_number(value) and not math.isnan(value)  # type: ignore[arg-type]


def _evaluations(rows: Sequence[Mapping[str, Any]]) -> Table:
    found = [row for row in rows if METRIC in row]
    columns = sorted(
        {name for row in found for name in row if name.startswith("eval/")}, key=lambda n: (n != METRIC, n)
    )
    return Table(
        ("frames", *columns),
        tuple(
            (f"{row['frames']:,.0f}", *(number(row[name]) if _finite(row.get(name)) else NONE for name in columns))
            for row in reversed(found)
        ),
        names=0,
    )


def _changed_settings(settings: Mapping[str, Any]) -> Table:
    """The settings whose values are not those of ``rlexp-train`` without arguments."""
    defaults = dict(flatten(load([]).values))
    return Table(
        ("setting", "this run", "default"),
        tuple(
            (name, _text(value), _text(defaults[name]) if name in defaults else NONE)
            for name, value in settings.items()
            if name not in defaults or _text(defaults[name]) != _text(value)
        ),
        names=3,
    )


def _origin(path: Path) -> Table:
    """Where the run comes from, or why its metadata cannot be read."""
    try:
        metadata = read_json(path) if path.exists() else {}
        found = list(flatten({key: metadata[key] for key in _ORIGIN if key in metadata}).items())
    except (UnreadableError, ValueError, RecursionError) as error:
        found = [("metadata.json", f"cannot be read: {error}")]
    return Table(("", ""), tuple((name, _text(value)) for name, value in found), names=2)


def _commands(run: Run) -> dict[str, str]:
    """What to do next, and the command for it; none of them trusts what the run names, which may be anyone's."""
    folder = str(run.path)
    found: dict[str, tuple[str, ...]] = {}
    if run.status == COMPLETED:
        found["Train on"] = ("rlexp-train", f"resume={folder}", f"total_frames={2 * run.trained}")
    else:
        found["Resume"] = ("rlexp-train", f"resume={folder}")
    best = run.path / "checkpoints" / "best"
    if best.is_file():
        found["Evaluate"] = ("rlexp-eval", f"checkpoint={best}", "episodes=50", "video=true")
        found["Export to ONNX"] = ("rlexp-export", f"checkpoint={best}")
    if not own_packages(run.settings):  # read as the user's own, it would run what it names
        found["Repeat"] = ("rlexp-train", "--config-path", folder, "--config-name", "config")
    return {what: shlex.join(command) for what, command in found.items()}


def _video(folder: Path) -> tuple[str, str]:
    """The newest video as a ``data:`` URL, and the path of one that is too large for the page; both may be empty.

    A link is not followed: a stranger's could lead to any file of the reader's.
    """
    if not folder.is_dir() or folder.is_symlink():
        return "", ""
    videos = [path for path in folder.glob("*.mp4") if path.is_file() and not path.is_symlink()]
    if not videos:
        return "", ""
    newest = max(videos, key=lambda path: (path.stat().st_mtime, path.name))
    if newest.stat().st_size > _LARGEST_VIDEO:
        return "", str(newest)
    return f"data:video/mp4;base64,{base64.b64encode(newest.read_bytes()).decode()}", ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
