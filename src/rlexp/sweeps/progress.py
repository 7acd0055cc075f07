"""The progress of a sweep: one line on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlexp.sweeps.folder import COMPLETED, FAILED, RUNNING, Job
from rlexp.sweeps.launchers import CoresPerJob


class Progress:
    """Counts of jobs done, failed, running and left, and the time; one line that is updated on a terminal.

    Args:
        folder: the folder of the sweep.
        todo: number of jobs that will run.
        share: how many run at once, on how many cores each.
    """

    def __init__(self, folder: Path, todo: int, share: CoresPerJob) -> None:
        self._start = time.monotonic()
        self._shown = ""
        self._live = sys.stderr.isatty()
        print(f"sweep of {todo} job{'s' if todo > 1 else ''}, {share}, in {folder}", file=sys.stderr)

    def show(self, jobs: Sequence[Job]) -> None:
        """Print the counts, if they have changed."""
        done, failed, running = (sum(job.status == status for job in jobs) for status in (COMPLETED, FAILED, RUNNING))
        counts = f"{done} done, {failed} failed, {running} running, {len(jobs) - done - failed - running} left"
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        line = f"sweep: {counts}, {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif counts != self._shown:
            print(line, file=sys.stderr, flush=True)
        self._shown = counts

    def close(self) -> None:
        """Leave the last line on the screen."""
        if self._live:
            print(file=sys.stderr)
