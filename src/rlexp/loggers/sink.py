"""What gets a copy of a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, float]


class Sink:
    """Base of what copies the rows of a run; one that raises is announced, gets no more rows, and training goes on."""

    def log(self, row: Row) -> None:
        """Take one row: ``frames`` and any of the metrics. ``metrics.jsonl`` has it already."""
        raise NotImplementedError

    def log_video(self, path: Path, frames: int) -> None:
        """Take an MP4 of an evaluation after so many frames; the row of the same frames comes next."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush and end; ``summary`` is the run's ``summary.json``, whatever way it ended."""
