"""The interface of a sink, which gets a copy of a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, float]


class Sink:
    """Base of all sinks. One that raises gets no more rows; a warning says so, and training goes on."""

    def log(self, row: Row) -> None:
        """Take one row: ``frames`` and any of the metrics. It is in ``metrics.jsonl`` already.

        A run that is completed where it stopped adds its final evaluation to its last row, with the same frames.
        """
        raise NotImplementedError

    def log_video(self, path: Path, frames: int) -> None:
        """Take an MP4 of the evaluation at these frames; the row of the same frames comes next."""

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """Take a checkpoint of the run; ``best`` if no evaluation was better."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush and close; ``summary`` is the run's ``summary.json``, however it ended."""
