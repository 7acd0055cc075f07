"""Sinks for metrics: a `LoggerSpec` describes the ones beside the run's own ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rlexp.config import Positive, Spec

Row = Mapping[str, float]


class Sink(Protocol):
    """Takes the rows of a run, in order."""

    def log(self, row: Row) -> None:
        """Take one row: ``frames`` and any of the metrics."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush and end; ``summary`` is the run's ``summary.json``, whatever way it ended."""


class LoggerSpec(Spec):
    """Base of all logger options."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str) -> list[Sink]:
        """Start the sinks of a run, or go on with them.

        Args:
            run_dir: the run's folder.
            config: the resolved config, secrets left out.
            run_id: the same each time that the run is resumed, and no other run's.
        """
        raise NotImplementedError


class NoLogger(LoggerSpec):
    """The run's own files and nothing else."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str) -> list[Sink]:
        """No sinks."""
        return []


class Wandb(LoggerSpec):
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

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str) -> list[Sink]:
        """One W&B run, inside the run's folder."""
        from rlexp.loggers.wandb import open_wandb

        return open_wandb(self, run_dir, config, run_id)
