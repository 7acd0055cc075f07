"""Settings of the loggers: the sinks that get a copy of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlexp.config import TARGET, Config, Positive, Problem
from rlexp.loggers.sink import Sink


class LoggerConfig(Config):
    """Base of all logger options."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """Start the sinks of a run, or go on with them.

        Args:
            run_dir: the run's folder.
            config: the resolved config, secrets left out.
            run_id: the same each time that the run is resumed, and no other run's.
            frames: where training starts. Rows beyond, which a killed process logged, are made again.
        """
        raise NotImplementedError


class NoLoggerConfig(LoggerConfig):
    """The run's own files and nothing else."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """No sinks."""
        return []


class SeveralConfig(LoggerConfig):
    """Several loggers at once.

    Attributes:
        sinks: the loggers; names are free.
    """

    sinks: dict[str, LoggerConfig]

    def missing_requirements(self) -> Iterator[Problem]:
        """What any of them lacks."""
        for name, logger in self.sinks.items():
            yield from (problem.under(f"sinks.{name}.") for problem in logger.missing_requirements())

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """The sinks of all of them."""
        return [sink for logger in self.sinks.values() for sink in logger.open(run_dir, config, run_id, frames)]


class CsvConfig(LoggerConfig):
    """``metrics.csv`` in the run's folder: what ``metrics.jsonl`` holds, a column a metric."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """The table, with the run's rows so far."""
        from rlexp.loggers.local import CsvFile

        return [CsvFile(run_dir)]


class TensorBoardConfig(LoggerConfig):
    """TensorBoard events in the run's folder ``tensorboard``; the steps are frames."""

    def missing_requirements(self) -> Iterator[Problem]:
        """The package tensorboard."""
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            message = "needs the package tensorboard: pip install 'rlexp[tensorboard]'."
            yield Problem(TARGET, message, "rlexp.loggers.TensorBoardConfig")

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """A file of events, which hides what earlier ones hold beyond ``frames``."""
        from rlexp.loggers.tensorboard import TensorBoardSink

        return [TensorBoardSink(run_dir / "tensorboard", config, frames)]


class WandbConfig(LoggerConfig):
    """Weights & Biases, as a copy of ``metrics.jsonl``.

    Attributes:
        mode: ``auto`` is online where an API key is configured and offline otherwise; nothing ever prompts.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: W&B group of the run; ``auto`` is the same for all seeds of one configuration, and no other's.
        job_type: W&B job type.
        tags: W&B tags.
        init_timeout: seconds to wait for the server before going on offline.
        finish_timeout: seconds to wait at the end for the last rows to be uploaded.
    """

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: Sequence[str]
    init_timeout: Positive
    finish_timeout: Positive

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """One W&B run, inside the run's folder."""
        from rlexp.loggers.wandb import open_wandb

        return open_wandb(self, run_dir, config, run_id)
