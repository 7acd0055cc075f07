"""What every run can write without another package: metrics file and CSV table."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlexp.files import write_text
from rlexp.loggers.sink import Row, Sink
from rlexp.text import csv_cell


class MetricsFile:
    """``metrics.jsonl``: one JSON object per row, flushed before the next batch starts; the authoritative log of a run.

    Args:
        path: the file. Lines that are no whole row, as a killed process may leave them, are removed.
        frames: where training starts; rows beyond, left by a killed process, are removed, since they will be logged
            again.

    Attributes:
        rows: how many rows were kept.
    """

    def __init__(self, path: Path, frames: int = 0) -> None:
        self.rows = 0
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if 0 < _frames(line) <= frames]
            self.rows = len(kept)
            write_text(path, "".join(f"{line}\n" for line in kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Append one row."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def amend(self, row: Row) -> bool:
        """Add metrics to the last row, if that has the same frames; whether it has."""
        *before, last = self._path.read_text(encoding="utf-8").splitlines() or [""]
        if _frames(last) != row["frames"]:
            return False
        last = json.dumps(json.loads(last) | row, allow_nan=False)
        write_text(self._path, "".join(f"{line}\n" for line in [*before, last]))
        self._file.close()
        self._file = self._path.open("a", encoding="utf-8")
        return True

    def sync(self) -> None:
        """Make every row so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self._file.close()


def _frames(line: str) -> float:
    """The frames of a row of ``metrics.jsonl``; 0 for a line that is no whole row."""
    try:
        return float(json.loads(line)["frames"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return 0.0


class CsvFile(Sink):
    """``metrics.csv``: one row for each of ``metrics.jsonl``, one column for each metric that any row has.

    Args:
        run_dir: the run's folder, which holds both; the rows so far are copied.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "metrics.csv"
        self._columns: list[str] = []
        self._frames = 0.0
        self._copy()

    def _copy(self) -> None:
        rows = read_metrics(self._run_dir)
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        self._frames = rows[-1]["frames"] if rows else 0.0
        write_text(self._path, self._lines(*rows, header=True))

    def log(self, row: Row) -> None:
        """Append one row; a new metric, or more of the last row, rewrites the table."""
        if row.keys() <= set(self._columns) and row["frames"] > self._frames:
            self._frames = row["frames"]
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines(row))
        else:
            self._copy()

    def _lines(self, *rows: Row, header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writerow({key: csv_cell(key) for key in self._columns})
        writer.writerows(rows)
        return text.getvalue()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Every row of a run's ``metrics.jsonl``."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
