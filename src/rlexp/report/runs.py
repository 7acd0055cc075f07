"""Read run folders: their settings, how they ended, and their evaluations."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic_core import from_json

from rlexp.config.legacy import current_config
from rlexp.errors import RlexpError
from rlexp.report.liveness import owner_of
from rlexp.runs.rundir import RunDir

log = logging.getLogger(__name__)

COMPLETED = "completed"
STOPPED, FAILED, REQUEUE = "stopped", "failed", "requeue"
RUNNING, WAITING, KILLED = "running", "waiting", "killed"
UNFINISHED, NOT_STARTED = "unfinished", "not started"
UNREADABLE, NOT_EVALUATED = "unreadable", "not evaluated"
METRIC = "eval/return"
SEARCH = "search"
"""A setting that no config has: what a run in a search's folder is for, ``screening`` or ``confirmation``."""

# Far more than any experiment has; a config with more was made to exhaust the reader.
_MOST_SETTINGS = 10_000
_DEEPEST = 50
_LARGEST = 1e100  # squares and sums of returns must stay finite
_NO_EFFECT = ("hydra-core", "wandb")  # packages whose version decides nothing, where settings are equal
_OF_SEARCH = {"trials": "screening", "confirmation": "confirmation"}

# libyaml where PyYAML was built with it: ten times as fast, and a sweep has hundreds of these files.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Floats = NDArray[np.float64]


class ReportError(RlexpError):
    """Nothing can be reported; the message names the path and the remedy."""


class UnreadableError(Exception):
    """A file of a run does not hold what a run writes."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        status: ``completed``; else why its numbers are in no average: ``stopped``, ``failed`` and ``requeue`` as the
            run's summary says, ``running``, ``killed`` (its process is gone), ``unfinished`` (no process is known),
            ``not started`` and ``waiting`` (a sweep's job), ``unreadable``, ``not evaluated``, ``superseded`` (a later
            run has the same settings and seed).
        problem: details of the status.
        damage: what is missing from the files of a run that can be read nevertheless; empty where nothing is.
        settings: the resolved config as numbers, text, None and lists of them; nested keys are joined by dots, empty
            mappings left out. A search's run has `SEARCH` among them.
        started: when, ISO 8601; empty where the run does not say.
        frames: ``[evaluations]``, simulator frames at each evaluation, increasing.
        returns: ``[evaluations]``, ``eval/return``.
        seconds: ``[evaluations]``, seconds of collection and update until then, without those of evaluations.
        trained: simulator frames of the last row.
        fps: frames per second of collection and update, over the whole run; NaN without rows.
        origin: ``commit``, ``total_frames`` and the version of each package, as far as the run says; where a resume
            changed one, ``1,000,000 then 2,000,000``.
    """

    path: Path
    status: str
    problem: str = ""
    damage: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    frames: Floats = field(default_factory=lambda: np.empty(0))
    returns: Floats = field(default_factory=lambda: np.empty(0))
    seconds: Floats = field(default_factory=lambda: np.empty(0))
    trained: int = 0
    fps: float = math.nan
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """Whether its numbers may be averaged."""
        return self.status == COMPLETED

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def final(self) -> float:
        """The return of the last evaluation."""
        return float(self.returns[-1])

    @property
    def best(self) -> float:
        """The highest return of an evaluation."""
        return float(self.returns.max())

    def reaches(self, threshold: float) -> tuple[float, float]:
        """Frames and seconds of the first evaluation at ``threshold`` or above; infinite where there is none."""
        hits = np.flatnonzero(self.returns >= threshold)
        return (float(self.frames[hits[0]]), float(self.seconds[hits[0]])) if hits.size else (math.inf, math.inf)


def load_runs(paths: Iterable[Path | str]) -> list[Run]:
    """Read every run in or below the given folders, each once, in order of their paths.

    Args:
        paths: run folders, or folders with run folders anywhere below them. A run folder has a ``config.yaml`` next to
            a ``metrics.jsonl``, ``metadata.json`` or ``summary.json``, or is a job's in a sweep.

    Returns:
        The runs; those that cannot be read have the status ``unreadable``.

    Raises:
        ReportError: a folder has no run in it, or does not exist.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ReportError(f"{path} is not a folder; name a run's folder, or one with runs below it.")
        below = set(run_folders(path.resolve(), _cannot_be_read, _say_linked))
        if not below:
            raise ReportError(
                f"{path}: no run found in or below it. A run's folder has config.yaml and metrics.jsonl; "
                "rlexp-train writes one under outputs/."
            )
        found |= below
    return [current(read_run(path)) for path in sorted(found)]


def read_run(path: Path) -> Run:
    """Read one run folder; what is wrong with it is in its status and `Run.damage`, and never raised."""
    layout = RunDir(path)
    settings: dict[str, Any] = {}
    try:
        settings = read_settings(layout.config) | _search(path)
        return _read(layout, settings)
    except UnreadableError as error:
        return Run(path, UNREADABLE, str(error), settings=settings)
    except Exception as error:  # whatever a file holds, it must not keep other runs from being reported
        return Run(path, UNREADABLE, f"{type(error).__name__}: {error}", settings=settings)


def _search(path: Path) -> dict[str, str]:
    """The setting `SEARCH` of a run in a search's folder: runs that chose a configuration cannot test it as well."""
    for folder in path.parents:
        if folder.name in _OF_SEARCH and (folder.parent / "search.yaml").is_file():
            return {SEARCH: _OF_SEARCH[folder.name]}
    return {}


def _read(layout: RunDir, settings: Mapping[str, Any]) -> Run:
    damage = []
    metadata: Mapping[str, Any] = {}
    begun = layout.metadata.exists()
    if begun:
        try:
            metadata = read_json(layout.metadata)
        except UnreadableError as error:  # only its start and origin are lost
            damage.append(str(error))
    summary = read_json(layout.summary) if layout.summary.exists() else {"status": UNFINISHED if begun else NOT_STARTED}
    status, problem = str(summary.get("status", UNFINISHED)), str(summary.get("error", ""))
    if status not in (COMPLETED, STOPPED, FAILED, REQUEUE, NOT_STARTED):  # a running one is told by its process
        status = UNFINISHED
    rows = read_rows(layout.metrics, torn=status != COMPLETED) if layout.metrics.exists() else []
    trained = int(rows[-1]["frames"]) if rows else 0
    if missing := _missing(rows, settings.get("collector.frames_per_batch")):
        damage.append(f"{layout.metrics}: {missing} of {missing + len(rows)} rows are missing")
    evaluations = [row for row in rows if METRIC in row]
    if status == COMPLETED and is_number(end := summary.get("frames")) and end != trained:
        message = f"{layout.metrics} ends at {trained:,} frames and the run at {end:,}: its last rows are missing"
        raise UnreadableError(message)
    if status == COMPLETED and not evaluations:
        status, problem = NOT_EVALUATED, f"no row of metrics.jsonl has {METRIC}"
    return Run(
        layout.path,
        status,
        problem,
        "; ".join(damage),
        settings,
        str(metadata.get("started", "")),
        frames=np.array([row["frames"] for row in evaluations], dtype=float),
        returns=np.array([row[METRIC] for row in evaluations], dtype=float),
        seconds=np.array([row["time/collect"] + row["time/update"] for row in evaluations], dtype=float),
        trained=trained,
        fps=float(rows[-1]["time/fps"]) if rows else math.nan,
        origin=_origin(metadata),
    )


def _origin(metadata: Mapping[str, Any]) -> dict[str, str]:
    """As `Run.origin`; empty where ``metadata.json`` holds something else than a run writes."""
    found: dict[str, dict[str, None]] = {}
    try:
        sessions = metadata.get("sessions") or [metadata]
        if not any("code" in session for session in sessions) and (git := metadata.get("git")):  # of an earlier version
            found["commit"] = {f"{git['commit'][:7]}{' with changes' if git['dirty'] else ''}": None}
        for session in sessions:
            if code := session.get("code"):
                found.setdefault("commit", {})[str(code)] = None
            # Earlier versions kept the versions of the last session alone.
            versions = session.get("versions") or metadata.get("versions", {})
            budget = {"total_frames": f"{session['total_frames']:,}"} if "total_frames" in session else {}
            for name, value in (budget | versions).items():
                if name not in _NO_EFFECT and value is not None:
                    found.setdefault(name, {})[str(value)] = None
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
    return {name: " then ".join(values) for name, values in found.items()}


def current(run: Run) -> Run:
    """The run with the status that the processes of this machine give it, where its files do not say how it ended."""
    if run.status not in (UNFINISHED, NOT_STARTED):
        return run
    own, sweep_alive = owner_of(run.path), owner_of(run.path.parent) == "alive"
    if run.status == NOT_STARTED and own is None:
        return replace(run, status=WAITING) if sweep_alive else run
    if own in ("alive", "remote"):
        return replace(run, status=RUNNING)
    if sweep_alive:  # which will start its process, or start it again
        return replace(run, status=WAITING)
    if _has_ended(run.path):  # after its files were read
        return read_run(run.path)
    return replace(run, status=KILLED) if own == "dead" else run


def _has_ended(path: Path) -> bool:
    try:
        return read_json(RunDir(path).summary).get("status") not in (None, RUNNING, UNFINISHED)
    except UnreadableError:
        return False


def flatten(node: Mapping[Any, Any]) -> dict[str, Any]:
    """A nested mapping's leaves, each under its dotted path, as numbers, text, None and lists of them.

    Raises:
        ValueError: it is nested too deeply, or has more entries than any config: aliases of aliases make very many of a
            few lines.
    """
    found: dict[str, Any] = {}
    entries = 0

    def entered(depth: int) -> None:
        nonlocal entries
        entries += 1
        if entries > _MOST_SETTINGS:
            raise ValueError(f"has more than {_MOST_SETTINGS:,} settings")
        if depth > _DEEPEST:
            raise ValueError("is nested too deeply")

    def walk(node: Mapping[Any, Any], prefix: str, depth: int) -> None:
        for key, value in node.items():
            entered(depth)
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.", depth + 1)
            else:
                found[f"{prefix}{key}"] = plain(value, depth)

    def plain(value: Any, depth: int) -> Any:
        """A value of a YAML file, dates and other types as text."""
        if isinstance(value, list | Mapping):
            for _ in value:
                entered(depth + 1)
        if isinstance(value, list):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < _LARGEST):
            return value
        return str(sorted(map(str, value)) if isinstance(value, set) else value)

    walk(node, "", 0)
    return found


def _cannot_be_read(error: OSError) -> None:
    raise ReportError(f"{error.filename} cannot be read ({error.strerror}), and may hold runs.")


def _say_linked(link: Path) -> None:
    log.warning("%s is a link and is left out: to count its runs, name the folder that it leads to.", link)


def run_folders(
    top: Path,
    on_error: Callable[[OSError], object] | None = None,
    on_link: Callable[[Path], object] | None = None,
) -> Iterator[Path]:
    """Every run's folder in or below a folder; links are not followed.

    Args:
        top: the folder.
        on_error: is told of folders that cannot be read; None leaves them out.
        on_link: is told of links to runs' folders, or to folders with runs right below.
    """
    for folder, below, files in os.walk(top, onerror=on_error):
        # A sweep gives its jobs a config before they start; one that failed early has only its summary besides.
        begun = {"metrics.jsonl", "metadata.json", "summary.json"} & {*files, *below}
        if "config.yaml" in files and (begun or Path(folder, "../sweep.json").is_file()):
            yield Path(folder)
            # A run's own folders hold checkpoints and copies of its config, no other runs.
            below.clear()
        if on_link is not None:
            for link in (Path(folder, name) for name in below if Path(folder, name).is_symlink()):
                if (link / "config.yaml").exists() or any(link.glob("*/config.yaml")):
                    on_link(link)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a ``config.yaml``, as in `Run.settings`; an earlier version's in the current schema.

    Raises:
        UnreadableError: it holds none.
    """
    try:
        values = _mapping(yaml.load(read_text(path), _Loader), str(path))
        found = flatten(values)
        with suppress(Exception):  # what no version has saved is shown as it is
            found = flatten(current_config(values))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UnreadableError(f"{path}: {error}") from error
    seed = found.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UnreadableError(f"{path}: seed is no whole number: {seed}")
    return found


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UnreadableError: it is none.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a link could lead to any file of the reader's
        raise UnreadableError(f"{path}: is not a file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: {error}") from error


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        UnreadableError: it does not.
    """
    text = read_text(path)
    if not text.strip():
        raise UnreadableError(f"{path}: is empty")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: {error}") from error
    return _mapping(values, str(path))


def _mapping(values: object, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UnreadableError(f"{where}: holds no keys and values")
    return values


def read_rows(path: Path, *, torn: bool) -> list[Mapping[str, Any]]:
    """The rows of ``metrics.jsonl``, empty lines left out.

    Args:
        path: the file.
        torn: whether the last line may be half a row, as a killed run leaves it; it is then skipped.

    Raises:
        UnreadableError: a line is no row, or does not follow the one before.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    rows: list[Mapping[str, Any]] = []
    frames = -math.inf
    for number, line in lines:
        where = f"{path}, line {number}"
        # Pydantic's parser: the same numbers in a third of the time, and a sweep has half a million rows.
        try:
            row = from_json(line)
        except ValueError as error:
            if torn and number == lines[-1][0]:
                break
            raise UnreadableError(f"{where}: {error}") from error
        if not isinstance(row, dict) or not is_number(row.get("frames")) or not is_number(row.get(METRIC, 0)):
            raise UnreadableError(f"{where}: is no row of numbers with frames and {METRIC}")
        for key in ("time/fps", "time/collect", "time/update", "time/eval"):
            if not is_number(row.get(key, 0.0 if key == "time/eval" else None)):
                raise UnreadableError(f"{where}: {key} is no number")
        if row["frames"] <= frames:
            raise UnreadableError(f"{where}: its frames are not more than those of the row before")
        frames = row["frames"]
        rows.append(row)
    return rows


def _missing(rows: Sequence[Mapping[str, Any]], frames_per_batch: object) -> int:
    """How many rows up to the last are missing, one per batch; 0 where the size of a batch is unknown."""
    if not rows or not isinstance(frames_per_batch, int) or frames_per_batch < 1:
        return 0
    return max(0, int(rows[-1]["frames"]) // frames_per_batch - len(rows))


def is_number(value: object) -> bool:
    """Whether it is a number that sums and squares of many stay finite with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
