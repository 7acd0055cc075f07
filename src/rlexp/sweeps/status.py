"""The status of a sweep: what runs, what failed and why, and what it would cost to finish; from its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rlexp.report.runs import COMPLETED, NOT_STARTED, RUNNING, WAITING, Run, current, read_run
from rlexp.sweeps.folder import FAILED, Job, SweepDir
from rlexp.text import printable


@dataclass(frozen=True)
class Cost:
    """What it would take to finish.

    Attributes:
        seconds: of all jobs that are left, one after the other; None where there is nothing to estimate it from.
        longest: of the longest of them: a lower bound, however many machines there are.
        completed: jobs that it is estimated from.
    """

    seconds: float | None
    longest: float
    completed: int


@dataclass(frozen=True)
class SweepStatus:
    """The jobs of a sweep, each with its run as it is now."""

    jobs: Sequence[tuple[Job, Run]]

    def cost(self) -> Cost:
        """Frames that are left, at the median seconds per frame of the completed jobs in the same environment.

        Where none has completed there, those of all environments count. Seconds are those of collecting, updating and
        evaluating, without the start of a process.
        """
        rates: dict[object, list[float]] = {}
        for job, run in self.jobs:
            if run.status == COMPLETED and job.seconds and run.trained:
                rates.setdefault(run.settings.get("env.name"), []).append(job.seconds / run.trained)
        pooled = [rate for found in rates.values() for rate in found]
        left = [(run, _left(run)) for _, run in self.jobs if run.status != COMPLETED]
        if not left or not pooled:
            return Cost(None if left else 0.0, 0.0, len(pooled))
        seconds = [frames * median(rates.get(run.settings.get("env.name"), pooled)) for run, frames in left]
        return Cost(sum(seconds), max(seconds), len(pooled))


def sweep_status(sweep: SweepDir) -> SweepStatus:
    """Read a sweep's folder."""
    return SweepStatus([(job, current(read_run(job.path))) for job in sweep.jobs()])


def to_lines(found: SweepStatus) -> list[str]:
    """The status as lines for a terminal; what comes from the runs is escaped."""
    counts = Counter(run.status for _, run in found.jobs)
    plural = "s" if len(found.jobs) > 1 else ""
    lines = [f"{len(found.jobs)} job{plural}: {', '.join(f'{count} {status}' for status, count in counts.items())}"]
    common = set.intersection(*(set(job.overrides) for job, _ in found.jobs)) if len(found.jobs) > 1 else set()
    for job, run in found.jobs:
        if run.status in (COMPLETED, WAITING, NOT_STARTED):
            continue
        own = " ".join(text for text in job.overrides if text not in common)
        lines.append(f"job {job.number} ({own}): {run.status}, {_progress(run)}")
        if run.status == FAILED:
            lines += [f"  {run.problem}", f"  traceback in {job.path / 'train.log'}"]
    cost = found.cost()
    if cost.seconds is None:
        lines.append("to finish: unknown, since no job has completed")
    elif cost.seconds:
        each = f"{_duration(cost.longest)} for the longest job"
        lines.append(
            f"to finish: {_duration(cost.seconds)} one after the other, {each}, by the {cost.completed} completed"
        )
    return [printable(line) for line in lines]


def _left(run: Run) -> int:
    total = run.settings.get("total_frames")
    return max(0, total - run.trained) if isinstance(total, int) else 0


def _progress(run: Run) -> str:
    total = run.settings.get("total_frames")
    of = f" of {total:,}" if isinstance(total, int) else ""
    speed = f", {run.fps:,.0f} frames/s" if run.status == RUNNING and run.trained else ""
    return f"{run.trained:,}{of} frames{speed}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
