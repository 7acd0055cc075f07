"""Run the jobs of a sweep: start or resume them, pass a stop signal on to all, and show the progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from rlexp.config import ConfigError, Problem, Sources, flat, load
from rlexp.config.redaction import redact
from rlexp.errors import RlexpError
from rlexp.experiment import check_config
from rlexp.files import read_yaml, write_json
from rlexp.machine import this_process
from rlexp.runs.links import refuse_linked_runs, refuse_links
from rlexp.runs.stops import STOPS, Stopped
from rlexp.sweeps.folder import COMPLETED, RUNNING, UNFINISHED, Job, SweepDir, SweepPlan, read_summary
from rlexp.sweeps.job import SweepContext, supervise
from rlexp.sweeps.launchers import JobLauncher
from rlexp.sweeps.progress import Progress

_POLL = 0.5  # seconds


class LauncherError(RlexpError):
    """The launcher failed while jobs were left."""


def run_jobs(
    folder: Path | str,
    jobs: Sequence[Sequence[str]],
    *,
    hydra: Sequence[str] = (),
    sources: Sources | None = None,
    fail_fast: bool = False,
    trust: Sequence[str] | None = None,
) -> list[Job]:
    """Run experiments in one folder, or resume them: complete jobs are kept, interrupted ones are resumed.

    A job that fails does not affect the others. Progress is printed on stderr. In the main thread, SIGINT, SIGTERM and
    SIGUSR1 make the running jobs save and stop; a second signal ends this process at once.

    Args:
        folder: the folder of the sweep; each job's run is in a subfolder named by its number.
        jobs: the overrides of each job, as after ``rlexp-train``. To resume a sweep, the same as before.
        hydra: the launcher and its settings, such as ``["launcher=joblib", "hydra.launcher.n_jobs=2"]``.
        sources: where configs come from; absolute paths, if the sweep may be resumed from another folder.
        fail_fast: whether the first job that fails stops the others.
        trust: None where the jobs are the user's own; for those of a folder's plan, the packages that they may import
            beside what rlexp itself builds (docs/security.md).

    Returns:
        The state of each job, in their order.

    Raises:
        ConfigError: the config of a job or of the launcher is wrong, or the folder holds another sweep; nothing has
            started.
        CheckpointError: the folder of a job, or a file in it, is a link; nothing has started.
        RunBusyError: another process uses the folder, or still runs one of the jobs; nothing has started.
        LauncherError: the launcher failed.
        Stopped: a signal was received.
        OSError: the folder cannot be written.
    """
    sweep = SweepDir(folder)
    plan = SweepPlan([list(overrides) for overrides in jobs], list(hydra), sources or Sources())
    if sweep.planned:
        _check_same(sweep.plan(), plan)
        refuse_linked_runs(sweep.path, 1)
        for number in range(len(jobs)):
            refuse_links(sweep.run(number))
        done = {job.number for job in sweep.jobs() if job.status == COMPLETED}
    else:
        done = set()
    todo = [number for number in range(len(jobs)) if number not in done]
    configs = _configs(plan, todo, trust)
    context = SweepContext(str(sweep.path), str(Path.cwd()), this_process(), fail_fast, trust)
    launcher = JobLauncher(partial(supervise, context), context.sweep, max(1, len(todo)), plan)
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
    missing = [Problem(text, "is missing: the sweep was started with it.") for text in sorted(old - new)]
    added = [Problem(text, "is not part of the sweep: start a new one with it.") for text in sorted(new - old)]
    counts = f"has {len(before.jobs)} jobs, which are not these {len(now.jobs)}, or not in this order."
    raise ConfigError([*missing, *added] or [Problem("sweep.resume", counts)])


def _configs(plan: SweepPlan, todo: Sequence[int], trust: Sequence[str] | None) -> dict[int, dict[str, Any]]:
    """The checked configs of the jobs that are left, without secrets."""
    configs = {}
    for number in todo:
        composed = load(plan.jobs[number], plan.sources)
        if composed.values.get("resume") is not None:
            message = "resumes a single run; a sweep is resumed by --multirun sweep.resume=..."
            raise ConfigError([Problem("resume", message, str(composed.values["resume"]))])
        configs[number] = redact(check_config(composed, trust).to_dict())
    return configs


def _begin(sweep: SweepDir, plan: SweepPlan, configs: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the plan, or check that no config has changed since it was written and that no job is still running.

    Raises:
        ConfigError: a job that has not started would have another config than when the sweep was started.
        RunBusyError: a job is still running.
    """
    for number, config in configs.items():
        run = sweep.run(number)
        if run.config.exists() and not run.started:
            _check_config(number, _saved(run.config), config)
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
    sweep.clear_stop()
    sweep.write_index()


def _saved(path: Path) -> Mapping[str, Any]:
    """The config that a job was given before it started."""
    try:
        values = read_yaml(path, get_yaml_loader())
        if not isinstance(values, Mapping):
            raise TypeError("it holds no settings")
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError([Problem("sweep.resume", f"is damaged: {error!r:.200}", str(path))]) from error
    return values


def _check_config(number: int, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    before, after = dict(flat(saved)), dict(flat(config))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    message = "has changed since the sweep was started: it was {}; job {} has not started yet. Start a new sweep."
    if changed:
        raise ConfigError([Problem(k, message.format(before.get(k), number), str(after.get(k))) for k in changed])


def _run(sweep: SweepDir, launcher: JobLauncher, todo: Sequence[int]) -> None:
    """Launch the jobs and wait until all have ended."""
    broken: list[Exception] = []

    def launch() -> None:
        try:
            launcher.launch(todo)
        except Exception as error:
            broken.append(error)

    # Not in the main thread, where some launchers would install their own signal handlers.
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
        raise LauncherError(f"the launcher failed: {type(broken[0]).__name__}: {broken[0]}") from broken[0]


@contextmanager
def _stops() -> Iterator[list[signal.Signals]]:
    """Collect the first stop signal; a second one has the system's default effect."""
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
