"""One job of a sweep: a process of its own, and the supervisor that a launcher starts for it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from omegaconf import DictConfig

from rlexp.config import Sources, load, quoted
from rlexp.config.redaction import redact
from rlexp.files import open_own, write_json
from rlexp.machine import process_state
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.sweeps.folder import COMPLETED, FAILED, RUNNING, STOPPED, SweepDir, read_summary

_POLL = 0.2  # seconds


@dataclass(frozen=True)
class SweepContext:
    """What a job needs to know of its sweep, on any machine.

    Attributes:
        sweep: the folder of the sweep.
        cwd: the working directory of the sweep.
        owner: the sweep's main process, by `this_process`.
        fail_fast: whether the first failure stops the sweep.
        trust: None where the jobs are the user's own; else the packages that they may import (docs/security.md).
    """

    sweep: str
    cwd: str
    owner: str
    fail_fast: bool
    trust: Sequence[str] | None = None

    @property
    def orphaned(self) -> bool:
        """Whether the sweep's main process is gone; False on another machine, where that cannot be checked."""
        return process_state(self.owner) == "dead"


def supervise(context: SweepContext, config: DictConfig) -> None:
    """Run one job to its end, and write how it ended to its summary and the index; raises none of the job's errors.

    The job is a process of its own, so that running out of memory or a crash of a simulator ends no other job. It is
    forked from a server process that has done the imports, once for all jobs of this launcher process.

    Args:
        context: the sweep that the job belongs to.
        config: the config that the launcher composed; ``job`` is the number.
    """
    sweep = SweepDir(context.sweep)
    number = int(config.job)
    run = sweep.run(number)
    if sweep.stopping or context.orphaned or read_summary(run).get("status") == COMPLETED:
        return
    plan = sweep.plan()
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of the terminal; the sweep's main process passes it on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        # joblib's processes have a start method of their own, which their child processes do not know.
        multiprocessing.set_start_method("forkserver", force=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["rlexp.training.trainer", "rlexp.runs.resume", "gymnasium.envs.mujoco"])
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.summary, {"status": RUNNING})
    process = processes.Process(target=_train, args=(context, run.path, plan.jobs[number], plan.sources))
    process.start()
    stopped = False
    try:
        while process.is_alive():
            process.join(_POLL)
            if not stopped and (sweep.stopping or context.orphaned):
                stopped = True
                process.terminate()
    except BaseException:
        # A scheduler ends this process: the job must save as well.
        process.terminate()
        process.join()
        raise
    if process.exitcode:
        how = f"exit code {process.exitcode}" if process.exitcode > 0 else signal.Signals(-process.exitcode).name
        failed = {"status": FAILED, "error": f"the job's process was ended by {how}"}
        _note(run, {"status": STOPPED} if stopped else failed)
    if context.fail_fast and read_summary(run).get("status") == FAILED:
        sweep.stop()
    sweep.write_index()


def _note(run: RunDir, ending: Mapping[str, str]) -> None:
    """Write how a job ended if it could not do so itself, because it was killed or failed while being built."""
    with suppress(RunBusyError):
        run.lock()
        if read_summary(run)["status"] == RUNNING:
            write_json(run.summary, ending)
        run.unlock()


def _train(context: SweepContext, folder: Path, overrides: Sequence[str], sources: Sources) -> None:
    """The job's process; does what ``rlexp-train OVERRIDES hydra.run.dir=FOLDER resume=auto`` does."""
    os.setpgrp()  # so that Ctrl-C in the terminal does not reach the job twice
    # submitit's signal at the time limit. Slurm gives it to every process of a job; the supervisor then sends SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.chdir(context.cwd)
    run = RunDir(folder)
    log = open_own(str(run.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    logging.getLogger("rlexp").setLevel(logging.INFO)
    sys.argv = ["rlexp-train", *overrides, f"hydra.run.dir={quoted(str(folder))}", "resume=auto"]

    from rlexp.experiment import trusted
    from rlexp.runs.resume import open_run
    from rlexp.runs.stops import Stopped
    from rlexp.training.trainer import Trainer

    try:
        composed = load(overrides, sources)
        if trusted(composed) if context.trust is None else context.trust:
            sys.path.append(context.cwd)
        start = open_run(composed, overrides, folder, "auto", context.trust)
        if not start.complete:
            Trainer(start.config, start.run, start.checkpoint).fit()
    except Stopped:
        pass
    except RunBusyError as error:
        sys.exit(str(error))
    except Exception as error:
        text = redact("".join(traceback.format_exception(error)))
        summary = read_summary(run)
        if summary["status"] != FAILED:  # it failed before a session could write it
            print(text, file=sys.stderr)
            summary = redact({"status": FAILED, "error": f"{type(error).__name__}: {error}"})
        write_json(run.summary, summary | {"traceback": text})
        sys.exit(1)


def _stop_when_orphaned() -> None:
    """Save and stop when the supervisor is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
