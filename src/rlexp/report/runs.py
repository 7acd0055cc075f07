"""Read run folders: their settings, how they ended, and their evaluations."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic_core import from_json

from rlexp.runs.rundir import RunDir

COMPLETED = "completed"
METRIC = "eval/return"

# libyaml where PyYAML was built with it: ten times as fast, and a sweep has hundreds of these files.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Floats = NDArray[np.float64]


class ReportError(Exception):
    """Nothing can be reported; the message names the path and the remedy."""


class _UnreadableError(Exception):
    """A file of a run does not hold what a run writes."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        status: ``completed``; else why its numbers are in no average: ``stopped`` and ``failed`` as the run itself
            says, ``unfinished`` (still running, or killed), ``not started`` (a sweep's job), ``unreadable``,
            ``not evaluated``, ``superseded`` (a later run has the same settings and seed).
        problem: what more there is to say about the status.
        settings: the resolved config, nested keys joined by dots, lists whole, empty mappings left out.
        started: when, ISO 8601; empty where the run does not say.
        frames: ``[evaluations]``, simulator frames at each evaluation, increasing.
        returns: ``[evaluations]``, ``eval/return``.
        seconds: ``[evaluations]``, seconds of collection and update until then; evaluations themselves are not counted.
        trained: simulator frames of the last row.
        fps: frames per second of collection and update, over the whole run; NaN without rows.
    """

    path: Path
    status: str
    problem: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    frames: Floats = field(default_factory=lambda: np.empty(0))
    returns: Floats = field(default_factory=lambda: np.empty(0))
    seconds: Floats = field(default_factory=lambda: np.empty(0))
    trained: int = 0
    fps: float = math.nan

    @property
    def counted(self) -> bool:
        """Whether its numbers may be averaged."""
        return self.status == COMPLETED

    @property
    def seed(self) -> object:
        """The run's seed."""
        return self.settings.get("seed")

    @property
    def final(self) -> float:
        """The last evaluation's return."""
        return float(self.returns[-1])

    @property
    def best(self) -> float:
        """The highest evaluation's return."""
        return float(self.returns.max())

    def reaches(self, threshold: float) -> tuple[float, float]:
        """Frames and seconds of the first evaluation at ``threshold`` or above; infinite where there is none."""
        hits = np.flatnonzero(self.returns >= threshold)
        return (float(self.frames[hits[0]]), float(self.seconds[hits[0]])) if hits.size else (math.inf, math.inf)


def load_runs(paths: Iterable[Path | str]) -> list[Run]:
    """Read every run in or below the given folders, each once, in order of their paths.

    Args:
        paths: run folders, or folders with run folders anywhere below them. A run folder has a ``config.yaml`` beside
            a ``metrics.jsonl``, ``metadata.json`` or ``summary.json``, or is a job's in a sweep.

    Returns:
        The runs, those that cannot be read among them with the status ``unreadable``.

    Raises:
        ReportError: a folder has no run in it, or does not exist.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ReportError(f"{path} is not a folder; name a run's folder, or one with runs below it.")
        below = set(run_folders(path.resolve()))
        if not below:
            raise ReportError(
                f"{path}: no run found in or below it. A run's folder has config.yaml and metrics.jsonl; "
                "rlexp-train writes one under outputs/."
            )
        found |= below
    return [read_run(path) for path in sorted(found)]


def read_run(path: Path) -> Run:
    """Read one run folder; what is wrong with it is told in its status, never raised."""
    layout = RunDir(path)
    try:
        settings = dict(flatten(_yaml(layout.config)))
    except _UnreadableError as error:
        return Run(path, "unreadable", str(error))
    try:
        metadata = _json(layout.metadata) if layout.metadata.exists() else {}
        unsaid = "unfinished" if metadata else "not started"
        summary = _json(layout.summary) if layout.summary.exists() else {"status": unsaid}
        status, problem = str(summary.get("status", "unfinished")), str(summary.get("error", ""))
        if status == "running":  # and if it is, its numbers are not its last
            status = "unfinished"
        rows = _rows(layout.metrics, torn=status != COMPLETED) if layout.metrics.exists() else []
        evaluations = [row for row in rows if METRIC in row]
        if status == COMPLETED and not evaluations:
            status, problem = "not evaluated", f"no row of metrics.jsonl has {METRIC}"
        return Run(
            path,
            status,
            problem,
            settings,
            str(metadata.get("started", "")),
            frames=np.array([row["frames"] for row in evaluations], dtype=float),
            returns=np.array([row[METRIC] for row in evaluations], dtype=float),
            seconds=np.array([row["time/collect"] + row["time/update"] for row in evaluations], dtype=float),
            trained=int(rows[-1]["frames"]) if rows else 0,
            fps=float(rows[-1]["time/fps"]) if rows else math.nan,
        )
    except _UnreadableError as error:
        return Run(path, "unreadable", str(error), settings)
    except KeyError as error:
        return Run(path, "unreadable", f"{layout.metrics}: an evaluation's row has no {error}", settings)


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping's leaves, each under its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def run_folders(top: Path) -> Iterator[Path]:
    """Every run's folder in or below a folder."""
    for folder, below, files in os.walk(top):
        # A sweep gives its jobs a config before their turn; one that failed early has nothing beside its summary.
        begun = {"metrics.jsonl", "metadata.json", "summary.json"} & set(files)
        if "config.yaml" in files and (begun or Path(folder, "../sweep.json").is_file()):
            yield Path(folder)
            # A run's own folders hold checkpoints and copies of its config, no other runs.
            below.clear()


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _UnreadableError(f"{path}: {error}") from error
    return _mapping(values, str(path))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _UnreadableError(f"{path}: {error}") from error
    return _mapping(values, str(path))


def _mapping(values: object, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise _UnreadableError(f"{where}: holds no keys and values")
    return values


def _rows(path: Path, *, torn: bool) -> list[Mapping[str, Any]]:
    """The rows of ``metrics.jsonl``.

    Args:
        path: the file.
        torn: a killed run may have left half of a last line, which is then passed over.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _UnreadableError(f"{path}: {error}") from error
    rows: list[Mapping[str, Any]] = []
    frames = -math.inf
    for number, line in enumerate(lines, start=1):
        # Pydantic's parser: the same numbers in a third of the time, and a sweep has half a million rows.
        try:
            row = from_json(line)
        except ValueError as error:
            if torn and number == len(lines):
                break
            raise _UnreadableError(f"{path}, line {number}: {error}") from error
        where = f"{path}, line {number}"
        if not isinstance(row, dict) or not _number(row.get("frames")) or not _number(row.get(METRIC, 0)):
            raise _UnreadableError(f"{where}: is no row of numbers with frames and {METRIC}")
        if row["frames"] <= frames:
            raise _UnreadableError(f"{where}: its frames are not more than the row's before")
        frames = row["frames"]
        rows.append(row)
    return rows


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
