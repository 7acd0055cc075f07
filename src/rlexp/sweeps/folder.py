"""The folder of a sweep: the plan of its jobs, a run folder for each, and the index of their states."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlexp.config import Sources
from rlexp.errors import RlexpError
from rlexp.files import alone, read_shared, write_bytes, write_json, write_text
from rlexp.runs.rundir import RunDir
from rlexp.text import csv_cell

COMPLETED, FAILED, STOPPED = "completed", "failed", "stopped"
RUNNING, WAITING, UNFINISHED = "running", "waiting", "unfinished"

_COLUMNS = ("job", "overrides", "status", "result", "seconds", "error")


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep; fixed once it is written.

    Attributes:
        jobs: the overrides of each job.
        hydra: the launcher and other settings of Hydra; a sweep may be resumed with others.
        sources: where configs come from.
    """

    jobs: list[list[str]]
    hydra: list[str]
    sources: Sources


@dataclass(frozen=True)
class Job:
    """The state of one job of a sweep.

    Attributes:
        number: its place in the sweep, and the name of its folder.
        overrides: its overrides.
        path: the folder of its run.
        status: from its summary: ``completed``, ``failed``, ``stopped``, ``requeue``, ``running`` (or killed while it
            was) or ``unfinished`` (killed before the sweep was resumed); ``waiting`` before it has started.
        result: mean return of the final evaluation; None unless completed.
        seconds: seconds of collection, updates and evaluations; None where the summary has none.
        error: type and message of the exception; None unless failed.
        traceback: traceback of the exception; None unless Python raised one.
    """

    number: int
    overrides: list[str]
    path: Path
    status: str
    result: float | None = None
    seconds: float | None = None
    error: str | None = None
    traceback: str | None = None


class SweepDir:
    """The layout of a sweep's folder.

    Args:
        path: the folder; created when it is locked.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self.index = self.path / "sweep.csv"
        self._plan = self.path / "sweep.json"
        self._stop = self.path / ".stop"
        self._own = RunDir(self.path)

    @property
    def planned(self) -> bool:
        """Whether there is a sweep in this folder."""
        return self._plan.exists()

    def plan(self) -> SweepPlan:
        """The plan of the sweep in this folder."""
        values = json.loads(read_shared(self._plan))
        jobs, hydra, sources = values["jobs"], values["hydra"], values["sources"]
        if not all(isinstance(text, str) for texts in [*jobs, hydra] for text in texts):
            raise TypeError("an override is no text")
        if not all(isinstance(path, str | None) for path in sources.values()):
            raise TypeError("a source is no path")
        return SweepPlan([list(job) for job in jobs], list(hydra), Sources(**sources))

    def write_plan(self, plan: SweepPlan) -> None:
        """Save the plan."""
        write_json(self._plan, asdict(plan))

    def run(self, number: int) -> RunDir:
        """The folder of a job."""
        return RunDir(self.path / str(number))

    def lock(self) -> None:
        """Keep other processes from running a sweep here, as `RunDir.lock` does.

        Raises:
            RunBusyError: another process runs a sweep here.
            OSError: the folder cannot be written.
        """
        self._own.lock()

    def unlock(self) -> None:
        """Release the lock."""
        self._own.unlock()

    @property
    def stopping(self) -> bool:
        """Whether running jobs are to save and stop, and no other is to start."""
        return self._stop.exists()

    def stop(self) -> None:
        """Ask all jobs to stop, on any machine that shares this folder."""
        write_bytes(self._stop, b"")

    def clear_stop(self) -> None:
        """Undo `stop`."""
        self._stop.unlink(missing_ok=True)

    def jobs(self) -> list[Job]:
        """The state of every job."""
        return [self.job(number, overrides) for number, overrides in enumerate(self.plan().jobs)]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """The state of one job, from its summary."""
        run = self.run(number)
        summary = read_summary(run)
        status = str(summary.get("status", WAITING))
        final = summary.get("final") if status == COMPLETED else None
        return Job(
            number,
            list(overrides),
            run.path,
            status,
            None if final is None else float(final["eval/return"]),
            summary.get("seconds"),
            summary.get("error"),
            summary.get("traceback"),
        )

    def write_index(self) -> list[Job]:
        """Rewrite ``sweep.csv`` from the summaries of the jobs; several processes may do so at once.

        A running job is ``unfinished`` there, so that the index is still right if everything is killed.

        Returns:
            The state of every job.
        """
        with alone(self.path / ".index.lock"):
            jobs = self.jobs()
            text = io.StringIO()
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for job in jobs:
                status = UNFINISHED if job.status == RUNNING else job.status
                error = job.traceback or job.error
                row = [job.number, shlex.join(job.overrides), status, job.result, job.seconds, error]
                rows.writerow(map(csv_cell, row))
            if not self.index.exists() or read_shared(self.index) != text.getvalue():
                write_text(self.index, text.getvalue())
        return jobs


class DamagedSummaryError(RlexpError):
    """A ``summary.json`` does not hold what a run writes; the message names it."""


def read_summary(run: RunDir) -> dict[str, Any]:
    """A run's ``summary.json``; empty where it has none.

    Raises:
        DamagedSummaryError: it is damaged, or not a run's.
    """
    try:
        values = json.loads(read_shared(run.summary))
        if not isinstance(values, dict) or not isinstance(values.get("status"), str):
            raise ValueError("it has no status")
        if values.get("final") is not None:
            float(values["final"]["eval/return"])
        if values.get("seconds") is not None:
            float(values["seconds"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        message = f"{run.summary} is damaged ({error!r:.100}): remove it, and the run is taken for one that was killed."
        raise DamagedSummaryError(message) from error
    return values
