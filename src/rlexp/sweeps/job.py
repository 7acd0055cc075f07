"""One job of a sweep: a process of its own, watched from where the launcher put it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
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
from rlexp.files import write_json
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.sweeps.folder import COMPLETED, FAILED, RUNNING, STOPPED, SweepDir, read_summary

_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Site:
    """Where a sweep runs; what a launcher carries to wherever it puts a job.

    Attributes:
        sweep: the sweep's folder.
        cwd: the folder that the sweep was started in.
        host: of the sweep's own process.
        pid: of the sweep's own process.
        fail_fast: whether the first failure stops the sweep.
    """

    sweep: str
    cwd: str
    host: str
    pid: int
    fail_fast: bool

    @property
    def deserted(self) -> bool:
        """Whether the sweep's own process was killed; on another machine it cannot be seen, and jobs go on."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


def supervise(site: Site, config: DictConfig) -> None:
    """Run one job to its end, and see that its summary and the index say how it ended; raises nothing of the job's.

    The job is a process of its own: what ends it, a full memory or a simulator's crash, ends no other. It starts from
    one that has the imports behind it, once for all jobs that the launcher runs in this process.

    Args:
        site: where the sweep runs.
        config: what the launcher composed, for the job's number.
    """
    sweep = SweepDir(site.sweep)
    number = int(config.job)
    run = sweep.run(number)
    if sweep.stopping or site.deserted or read_summary(run).get("status") == COMPLETED:
        return
    plan = sweep.plan()
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of the terminal; the sweep's own passes it on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        # joblib's processes have a method of their own, which those that they start do not know.
        multiprocessing.set_start_method("forkserver", force=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["rlexp.training.trainer", "rlexp.runs.resume", "gymnasium.envs.mujoco"])
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.summary, {"status": RUNNING})
    process = processes.Process(target=_train, args=(site, run.path, plan.jobs[number], plan.sources))
    process.start()
    told = False
    try:
        while process.is_alive():
            process.join(_POLL)
            if not told and (sweep.stopping or site.deserted):
                told = True
                process.terminate()
    except BaseException:
        # A scheduler takes this process away: what it started must save, too.
        process.terminate()
        process.join()
        raise
    if process.exitcode:
        how = f"exit code {process.exitcode}" if process.exitcode > 0 else signal.Signals(-process.exitcode).name
        failed = {"status": FAILED, "error": f"the job's process was ended by {how}"}
        _note(run, {"status": STOPPED} if told else failed)
    if site.fail_fast and read_summary(run).get("status") == FAILED:
        sweep.stop()
    sweep.write_index()


def _note(run: RunDir, ending: Mapping[str, str]) -> None:
    """Say how a job ended where it could not do so itself: while it was being built, or killed."""
    with suppress(RunBusyError):
        run.lock()
        if read_summary(run)["status"] == RUNNING:
            write_json(run.summary, ending)
        run.unlock()


def _train(site: Site, folder: Path, overrides: Sequence[str], sources: Sources) -> None:
    """The job's process: what ``rlexp-train OVERRIDES hydra.run.dir=FOLDER resume=auto`` does."""
    os.setpgrp()  # so that the terminal's Ctrl-C does not come a second time by the sweep
    os.chdir(site.cwd)
    run = RunDir(folder)
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_stop_if_deserted, daemon=True).start()
    logging.getLogger("rlexp").setLevel(logging.INFO)
    sys.argv = ["rlexp-train", *overrides, f"hydra.run.dir={quoted(str(folder))}", "resume=auto"]

    from rlexp.experiment import trusted
    from rlexp.runs.resume import open_run
    from rlexp.runs.stops import Stopped
    from rlexp.training.trainer import Trainer

    try:
        composed = load(overrides, sources)
        if trusted(composed):  # checked where the sweep was started
            sys.path.append(site.cwd)
        start = open_run(composed, overrides, folder, "auto")
        if not start.complete:
            Trainer(start.config, start.run, start.checkpoint).fit()
    except Stopped:
        pass
    except RunBusyError as error:
        sys.exit(str(error))
    except Exception as error:
        text = redact("".join(traceback.format_exception(error)))
        summary = read_summary(run)
        if summary["status"] != FAILED:  # it failed before there was a session to note it
            print(text, file=sys.stderr)
            summary = redact({"status": FAILED, "error": f"{type(error).__name__}: {error}"})
        write_json(run.summary, summary | {"traceback": text})
        sys.exit(1)


def _stop_if_deserted() -> None:
    """Save and stop when the process that watches this one is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
