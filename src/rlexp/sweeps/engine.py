"""Runs the jobs of a sweep: begins or goes on, passes a stop on to all of them, and counts."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import OmegaConf

from rlexp.config import ConfigError, Problem, Sources, flat, load
from rlexp.config.redaction import redact
from rlexp.experiment import check_config
from rlexp.files import write_json
from rlexp.runs.stops import STOPS, Stopped
from rlexp.sweeps.folder import COMPLETED, RUNNING, UNFINISHED, Job, SweepDir, SweepPlan, read_summary
from rlexp.sweeps.job import Site, supervise
from rlexp.sweeps.launchers import JobLauncher
from rlexp.sweeps.progress import Progress

_POLL = 0.5  # seconds


class LauncherError(Exception):
    """The launcher broke down, with jobs left."""


def run_jobs(
    folder: Path | str,
    jobs: Sequence[Sequence[str]],
    *,
    hydra: Sequence[str] = (),
    sources: Sources | None = None,
    fail_fast: bool = False,
) -> list[Job]:
    """Run experiments in one folder, or go on with them: what is complete is kept, what was cut goes on.

    A job that fails leaves the others alone; its status says so. Progress is told on stderr. In the main thread,
    SIGINT, SIGTERM and SIGUSR1 have the running jobs save and stop; a second one ends this process at once.

    Args:
        folder: of the sweep; each job's run is in the folder of its number in it.
        jobs: the overrides of each, as after ``rlexp-train``. To go on with a folder, the same as before.
        hydra: the launcher and its settings, such as ``["launcher=joblib", "hydra.launcher.n_jobs=2"]``.
        sources: where configs come from; paths absolute, if anyone is to go on from another folder.
        fail_fast: whether the first job that fails stops the others.

    Returns:
        How each job stands, in their order.

    Raises:
        ConfigError: a job's config or the launcher's is wrong, or the folder is of other jobs; nothing has started.
        RunBusyError: another process works in the folder, or still runs one of its jobs; nothing has started.
        LauncherError: the launcher broke down.
        Stopped: a signal came.
        OSError: the folder cannot be written.
    """
    sweep = SweepDir(folder)
    plan = SweepPlan([list(overrides) for overrides in jobs], list(hydra), sources or Sources())
    if sweep.planned:
        _check_same(sweep.plan(), plan)
        done = {job.number for job in sweep.jobs() if job.status == COMPLETED}
    else:
        done = set()
    todo = [number for number in range(len(jobs)) if number not in done]
    configs = _configs(plan, todo)
    site = Site(str(sweep.path), str(Path.cwd()), socket.gethostname(), os.getpid(), fail_fast)
    launcher = JobLauncher(partial(supervise, site), site.sweep, max(1, len(todo)), plan)
    sweep.lock()
    try:
        _begin(sweep, plan, configs)
        if todo:
            _run(sweep, launcher, todo)
        return sweep.write_index()
    finally:
        sweep.unlock()


def _check_same(before: SweepPlan, now: SweepPlan) -> None:
    if before.jobs == now.jobs:
        return
    old, new = ({text for job in plan.jobs for text in job} for plan in (before, now))
    lacking = [Problem(text, "is missing: the sweep was begun with it.") for text in sorted(old - new)]
    added = [Problem(text, "is none of the sweep's: begin a new one for it.") for text in sorted(new - old)]
    counts = f"its {len(before.jobs)} jobs are not these {len(now.jobs)}, or not in this order."
    raise ConfigError([*lacking, *added] or [Problem("sweep.resume", counts)])


def _configs(plan: SweepPlan, todo: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The checked configs of the jobs that are left, as they may be saved."""
    configs = {}
    for number in todo:
        composed = load(plan.jobs[number], plan.sources)
        if composed.values.get("resume") is not None:
            message = "continues one run; --multirun goes on with a whole sweep by sweep.resume=..."
            raise ConfigError([Problem("resume", message, str(composed.values["resume"]))])
        configs[number] = redact(check_config(composed).to_dict())
    return configs


def _begin(sweep: SweepDir, plan: SweepPlan, configs: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the plan, or see that nothing has changed and nobody else is at work since it was written.

    Raises:
        ConfigError: a job that has not begun would have another config than the sweep was begun with.
        RunBusyError: a job still runs.
    """
    for number, config in configs.items():
        run = sweep.run(number)
        if run.config.exists() and not run.started:
            _check_config(number, OmegaConf.to_container(OmegaConf.load(run.config)), config)
        if read_summary(run).get("status") == RUNNING:
            run.lock()
            write_json(run.summary, {"status": UNFINISHED})
            run.unlock()
    for number, config in configs.items():
        run = sweep.run(number)
        if not run.config.exists():
            run.path.mkdir(exist_ok=True)
            run.write_config(config)
    sweep.write_plan(plan)
    sweep.go_on()
    sweep.write_index()


def _check_config(number: int, saved: Any, config: Mapping[str, Any]) -> None:
    before, after = dict(flat(saved)), dict(flat(config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    message = "has changed since the sweep was begun, where it was {}; job {} has not begun yet. Begin a new sweep."
    if changed:
        raise ConfigError([Problem(k, message.format(before.get(k), number), str(after.get(k))) for k in changed])


def _run(sweep: SweepDir, launcher: JobLauncher, todo: Sequence[int]) -> None:
    """Launch, and watch until every job has ended."""
    broken: list[Exception] = []

    def launch() -> None:
        try:
            launcher.launch(todo)
        except Exception as error:
            broken.append(error)

    # Not in the main thread, where some launchers would take the signals for themselves.
    thread = threading.Thread(target=launch, daemon=True)
    progress = Progress(sweep.path, len(todo), launcher.share)
    with _stops() as received:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL)
            if received and not sweep.stopping:
                sweep.stop()
            progress.show(sweep.write_index())
        progress.close()
    if received:
        raise Stopped(received[0])
    if broken:
        raise LauncherError(f"the launcher broke down: {type(broken[0]).__name__}: {broken[0]}") from broken[0]


@contextmanager
def _stops() -> Iterator[list[signal.Signals]]:
    """Collects the first signal that asks to stop; the system takes a second one."""
    received: list[signal.Signals] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for other in STOPS:
            signal.signal(other, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, on_signal) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
