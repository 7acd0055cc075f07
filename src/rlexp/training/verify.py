"""Whether a run is reproducible: its first iterations once more, number by number."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlexp.experiment import ExperimentConfig, read_config
from rlexp.loggers import NoLoggerConfig
from rlexp.loggers.local import read_metrics
from rlexp.training.trainer import Trainer

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


def train_again(run_dir: Path, iterations: int) -> int | Difference:
    """Train a run's first iterations again, in a folder of their own, and compare their metrics.

    Args:
        run_dir: the run's folder.
        iterations: how many; less where the run has less, or was extended so early that the schedule changed.

    Returns:
        How many iterations were the same, or where they first differ.

    Raises:
        ConfigError: the run's config is not one that this version can build.
    """
    experiment, frames = _as_started(run_dir)
    logged = [row for row in read_metrics(run_dir) if row["frames"] <= frames][:iterations]
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


def _as_started(run_dir: Path) -> tuple[ExperimentConfig, float]:
    """The experiment with the budget that it was started with, and the frames at which that was changed."""
    values: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    first, *later = json.loads((run_dir / "metadata.json").read_text(encoding="utf-8"))["sessions"]
    extended = [session["frames"] for session in later if session["total_frames"] != first["total_frames"]]
    # What only watches a run may be missing here.
    unwatched = {"logger": NoLoggerConfig().to_dict(), "evaluation": values["evaluation"] | {"video_interval": None}}
    return read_config(values | unwatched | {"total_frames": first["total_frames"]}), min(
        extended, default=float("inf")
    )


def _compare(logged: dict[str, float], found: dict[str, float]) -> Difference | None:
    for metric in sorted(logged.keys() | found.keys()):
        ours, theirs = found.get(metric), logged.get(metric)
        if ours != theirs and not metric.startswith(_NOT_COMPARED):
            return Difference(int(logged["frames"]), metric, theirs, ours)
    return None
