"""Whether a run is reproducible: its first iterations once more, number by number."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf._utils import get_yaml_loader

from rlexp.config import ConfigError
from rlexp.config.legacy import current_config
from rlexp.errors import RlexpError
from rlexp.experiment import ExperimentConfig, read_config
from rlexp.files import read_shared, read_yaml
from rlexp.loggers import NoLoggerConfig
from rlexp.loggers.local import read_metrics
from rlexp.runs import checkpoint
from rlexp.runs.manifest import too_deep
from rlexp.runs.rundir import MACHINE_SETTINGS, RunDir
from rlexp.training.trainer import Trainer
from rlexp.workers import Workers

_NOT_COMPARED = ("time/", "eval/")  # the clock's; and evaluation may have been set otherwise when the run was resumed


@dataclass(frozen=True)
class Difference:
    """Where a run first differs from what it was.

    Attributes:
        frames: of the row that differs.
        metric: the metric that does.
        logged: its value in the run's ``metrics.jsonl``; None where it has none.
        found: its value now.
    """

    frames: int
    metric: str
    logged: float | None
    found: float | None

    def __str__(self) -> str:
        return f"at {self.frames:,} frames {self.metric} was {self.logged} and is {self.found}"


class UnreadableRunError(RlexpError):
    """A run's folder is incomplete or damaged; the message says what is wrong."""


def train_again(
    run_dir: Path, iterations: int, trust: Collection[str] | None = None, secrets: Mapping[str, Any] | None = None
) -> int | Difference:
    """Train a run's first iterations again, in a folder of their own, and compare their metrics.

    Args:
        run_dir: the run's folder.
        iterations: how many; less where the run has less, or was extended so early that the schedule changed.
        trust: packages that the run may import beside what rlexp itself builds; None where it is the user's own.
        secrets: values of the settings that were hidden when the run was saved, by their full paths.

    Returns:
        How many iterations were the same, or where they first differ.

    Raises:
        ConfigError: the run's config is not one that this version can build, or needs code that is not trusted.
        UnreadableRunError: a file of the run cannot be read.
    """
    try:
        values, frames = _as_started(run_dir)
        logged = [row for row in read_metrics(run_dir) if row["frames"] <= frames][:iterations]
    except UnreadableRunError:
        raise
    except (Exception, RecursionError) as error:  # whatever a damaged or hostile file leads to
        raise UnreadableRunError(f"its files are damaged: {error!r:.200}") from error
    if not logged:
        raise UnreadableRunError("metrics.jsonl has no row to compare")
    experiment = read_config(values, trust, secrets)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(experiment, Path(folder) / "run")
        try:
            for row in logged:
                metrics = trainer.iterate() | {"frames": trainer.frames}
                if (difference := _compare(row, metrics)) is not None:
                    return difference
        finally:
            trainer.close()
    return len(logged)


def resume_again(
    run_dir: Path, iterations: int, trust: Collection[str] | None = None, secrets: Mapping[str, Any] | None = None
) -> int | Difference:
    """Train a run's experiment twice, once without a break and once resumed half-way, and compare their metrics.

    Each part is trained in a process of its own, so that state outside of what a checkpoint holds shows: in variables
    of modules, closures or files.

    Args:
        run_dir: the run's folder, which is only read.
        iterations: before and after the break.
        trust: as for `train_again`.
        secrets: as for `train_again`.

    Returns:
        How many iterations after the break were the same, or where they first differ.

    Raises:
        ConfigError, UnreadableRunError: as for `train_again`.
        WorkerError: an iteration failed.
    """
    try:
        values, _ = _as_started(run_dir)
    except UnreadableRunError:
        raise
    except (Exception, RecursionError) as error:
        raise UnreadableRunError(f"its files are damaged: {error!r:.200}") from error
    experiment = read_config(values, trust, secrets)
    frames = 2 * iterations * experiment.collector.frames_per_batch
    # Schedules and the evaluations at the end are those of the run; only its beginning is trained.
    budget = max(experiment.total_frames, frames + experiment.collector.frames_per_batch)
    experiment = experiment.model_copy(update={"total_frames": budget})
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        parts = {"the run without a break": (experiment, whole, False), "the first half": (experiment, cut, False)}
        with closing(_trainings(parts)) as workers:
            workers.ask_each("iterate", {0: (2 * iterations,), 1: (iterations,)})
            expected, _ = workers.answers()
        with closing(_trainings({"the second half": (experiment, cut, True)})) as workers:
            workers.ask("iterate", iterations)
            (found,) = workers.answers()
    for before, after in zip(expected[iterations:], found, strict=True):
        if (difference := _compare(before, after, ("time/",))) is not None:
            return difference
    return iterations


def versions_at_the_start(run_dir: Path) -> dict[str, Any]:
    """Versions of the packages that a run's first iterations were trained with; empty where its files do not say."""
    try:
        metadata = json.loads((run_dir / "metadata.json").read_text(encoding="utf-8"))
        first, *_ = metadata["sessions"]
        return dict(first.get("versions") or metadata["versions"])  # an earlier version kept those of the last session
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _trainings(arguments: Mapping[str, tuple[ExperimentConfig, Path, bool]]) -> Workers:
    return Workers(PartOfTraining, arguments, passed_on=(ConfigError,))


class PartOfTraining:
    """Some iterations of a run, in a process of its own.

    Args:
        experiment: the checked config.
        folder: where it trains.
        resume: whether it resumes what is there.
    """

    def __init__(self, experiment: ExperimentConfig, folder: Path, resume: bool) -> None:
        run = RunDir(folder)
        self._trainer = Trainer(experiment, run, checkpoint.load(folder) if resume else None)

    def iterate(self, iterations: int) -> list[dict[str, float]]:
        """The rows of so many iterations; a checkpoint is saved after them."""
        rows = [self._trainer.iterate() | {"frames": self._trainer.frames} for _ in range(iterations)]
        self._trainer.save()
        return rows

    def close(self) -> None:
        """Close the simulators."""
        self._trainer.close()


def _as_started(run_dir: Path) -> tuple[dict[str, Any], float]:
    """The config with the budget and the machine's settings that it was started with, and when those were changed."""
    config, metadata = run_dir / "config.yaml", run_dir / "metadata.json"
    for path in (config, metadata, run_dir / "metrics.jsonl"):
        if not path.is_file():
            raise UnreadableRunError(f"{path.name} is missing or no file")
    values = read_yaml(config, get_yaml_loader())
    origin = json.loads(read_shared(metadata))
    if origin.get("learners", 1) != 1:
        raise UnreadableRunError("it was trained by several learners, and what one of them repeats is another run")
    first, *later = origin["sessions"]
    began = (first["total_frames"], first.get("settings"))
    changed = [s["frames"] for s in later if (s["total_frames"], s.get("settings")) != began]
    # What only watches a run may be missing here.
    unwatched = {"logger": NoLoggerConfig().to_dict(), "evaluation": values["evaluation"] | {"video_interval": None}}
    started = values | unwatched | {"total_frames": first["total_frames"]}
    if too_deep(started):
        raise UnreadableRunError("config.yaml is nested too deeply")
    started = current_config(started)
    for key, value in (first.get("settings") or {}).items():
        *above, name = key.split(".")
        node = started[above[0]] if above else started
        if key in MACHINE_SETTINGS and name in node:
            node[name] = value
    return started, min(changed, default=float("inf"))


def _compare(
    logged: dict[str, float], found: dict[str, float], left_out: tuple[str, ...] = _NOT_COMPARED
) -> Difference | None:
    for metric in sorted(logged.keys() | found.keys()):
        ours, theirs = found.get(metric), logged.get(metric)
        if ours != theirs and not metric.startswith(left_out):
            return Difference(int(logged["frames"]), metric, theirs, ours)
    return None
