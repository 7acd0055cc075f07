"""A sweep's folder: the plan of its jobs, a run's folder for each, and the index that says how they stand."""

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
from rlexp.files import alone, write_json, write_text
from rlexp.runs.rundir import RunDir

COMPLETED, FAILED, STOPPED = "completed", "failed", "stopped"
RUNNING, WAITING, UNFINISHED = "running", "waiting", "unfinished"

_COLUMNS = ("job", "overrides", "status", "result", "seconds", "error")


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep runs; it never changes once its folder has it.

    Attributes:
        jobs: each one's overrides.
        hydra: the launcher and what else is Hydra's own; a sweep may go on with another.
        sources: where configs come from.
    """

    jobs: list[list[str]]
    hydra: list[str]
    sources: Sources


@dataclass(frozen=True)
class Job:
    """How one job of a sweep stands.

    Attributes:
        number: its place in the sweep, and the name of its folder.
        overrides: what it was asked for.
        path: its run's folder.
        status: as its summary says: ``completed``, ``failed``, ``stopped``, ``requeue``, ``running`` (or cut off while
            it did) or ``unfinished`` (cut off in an earlier go); ``waiting`` before it began.
        result: mean return of the final evaluation; None unless completed.
        seconds: of collection, updates and evaluations; None where the summary does not say.
        error: what it raised, type and message; None unless failed.
        traceback: of what it raised, where Python had one.
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
        path: the folder; made when it is locked.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).resolve()
        self.index = self.path / "sweep.csv"
        self._plan = self.path / "sweep.json"
        self._stop = self.path / ".stop"
        self._own = RunDir(self.path)

    @property
    def planned(self) -> bool:
        """Whether a sweep was begun here."""
        return self._plan.exists()

    def plan(self) -> SweepPlan:
        """The sweep that was begun here."""
        values = json.loads(self._plan.read_text(encoding="utf-8"))
        jobs, hydra = values["jobs"], values["hydra"]
        if not all(isinstance(text, str) for texts in [*jobs, hydra] for text in texts):
            raise TypeError("an override is no text")
        return SweepPlan([list(job) for job in jobs], list(hydra), Sources(**values["sources"]))

    def write_plan(self, plan: SweepPlan) -> None:
        """Save what the sweep runs."""
        write_json(self._plan, asdict(plan))

    def run(self, number: int) -> RunDir:
        """A job's folder."""
        return RunDir(self.path / str(number))

    def lock(self) -> None:
        """Keep other sweeps out, as `RunDir.lock` does.

        Raises:
            RunBusyError: another process runs a sweep here.
            OSError: the folder cannot be written.
        """
        self._own.lock()

    def unlock(self) -> None:
        """Let other sweeps in."""
        self._own.unlock()

    @property
    def stopping(self) -> bool:
        """Whether running jobs are asked to save and stop, and no other to begin."""
        return self._stop.exists()

    def stop(self) -> None:
        """Ask every job for it, on whatever machine it runs: all see this folder."""
        self._stop.touch()

    def go_on(self) -> None:
        """Take `stop` back."""
        self._stop.unlink(missing_ok=True)

    def jobs(self) -> list[Job]:
        """How every job stands."""
        return [self.job(number, overrides) for number, overrides in enumerate(self.plan().jobs)]

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """How one job stands, as its own summary says."""
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
        """Write ``sweep.csv`` anew from the jobs' own summaries, whoever else does the same.

        A job that runs is ``unfinished`` there, which stays true if everything is killed now.

        Returns:
            How every job stands.
        """
        with alone(self.path / ".index.lock"):
            jobs = self.jobs()
            text = io.StringIO()
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for job in jobs:
                status = UNFINISHED if job.status == RUNNING else job.status
                error = job.traceback or job.error
                rows.writerow([job.number, shlex.join(job.overrides), status, job.result, job.seconds, error])
            if not self.index.exists() or self.index.read_text(encoding="utf-8") != text.getvalue():
                write_text(self.index, text.getvalue())
        return jobs


def read_summary(run: RunDir) -> dict[str, Any]:
    """A run's ``summary.json``; empty where it has none."""
    try:
        values: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values
