"""A whole search: its trials, their confirmation, and its results; in this process or in several."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from optuna import Study
from optuna.trial import FrozenTrial

from rlexp.config import ConfigError
from rlexp.files import write_bytes
from rlexp.machine import cores, usable_cpus
from rlexp.runs.errors import CheckpointError
from rlexp.runs.session import console_logging
from rlexp.runs.stops import STOPS, Stopped
from rlexp.search.confirmation import Confirmed, chosen, confirm, confirmed, confirmed_before
from rlexp.search.figures import draw
from rlexp.search.folder import SearchDir, SearchPlan, best_of
from rlexp.search.protocol import protocol
from rlexp.search.study import open_study, screen
from rlexp.workers import Workers

_PRELOAD = ("rlexp.training.trainer", "rlexp.runs.resume", "gymnasium.envs.mujoco")


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        study: its trials.
        confirmed: those that were trained again, best first.
        winner: the best of these, or the trial with the highest score where none was to be confirmed; None where no
            trial was completed, or none of the best could be confirmed.
    """

    study: Study
    confirmed: Sequence[Confirmed]
    winner: FrozenTrial | None


def search(folder: SearchDir, plan: SearchPlan) -> Outcome:
    """Run or resume a search, and write its results; several processes may share a folder.

    Raises:
        ConfigError, CheckpointError: as `rlexp.search.study.screen`.
        Stopped: a signal was received; the current runs are saved.
        WorkerError: a worker process died or failed.
    """
    if plan.settings.workers == 1:
        _take_part(folder, plan, lambda: None)
    else:
        _share_out(folder, plan)
    study = open_study(folder, plan.settings)
    folder.plots.mkdir(exist_ok=True)
    with folder.alone():
        for name, png in draw(study).items():
            write_bytes(folder.plots / f"{name}.png", png)
    trials = study.trials
    found = confirmed(folder, plan, [*chosen(trials, plan), *confirmed_before(folder, plan, trials)])
    winner = best_of(study)
    if plan.settings.confirm:
        winner = next((one.trial for one in found if one.score is not None), None)
    if winner is not None:
        folder.write_winner(plan, winner, protocol(plan, trials, found, winner))
    return Outcome(study, found, winner)


def _take_part(folder: SearchDir, plan: SearchPlan, go_on: Callable[[], None]) -> None:
    confirmed_so_far: list[int] | None = None
    while True:  # a process that extends the search may complete a better trial meanwhile
        screen(folder, plan, go_on)
        best = chosen(open_study(folder, plan.settings).trials, plan)
        if [trial.number for trial in best] == confirmed_so_far:
            return
        confirm(folder, plan, best, go_on)
        confirmed_so_far = [trial.number for trial in best]


def _share_out(folder: SearchDir, plan: SearchPlan) -> None:
    """Let worker processes take part, pass the first stop signal on to them, and wait until all have ended."""
    count = plan.settings.workers
    share = max(1, usable_cpus() // count)
    os.environ["OMP_NUM_THREADS"] = str(min(share, cores()))
    workers = Workers(
        _Member,
        {f"search worker {i + 1}": (folder.path, plan, sys.argv) for i in range(count)},
        preload=_PRELOAD,
        passed_on=(ConfigError, CheckpointError),
    )
    try:
        with _passing_on(workers.pids):
            workers.ask("take_part")
            stops = [number for number in workers.answers() if number is not None]
    finally:
        workers.close()
    if stops:
        raise Stopped(signal.Signals(stops[0]))


class _Member:
    """A worker process that takes part in a search.

    Args:
        path: the folder of the search.
        plan: what to search.
        argv: of the command, which the runs note.
    """

    def __init__(self, path: Path, plan: SearchPlan, argv: list[str]) -> None:
        os.setpgrp()  # so that Ctrl-C in the terminal does not reach it twice
        sys.argv = argv
        self._folder, self._plan = SearchDir(path), plan
        self._stop: signal.Signals | None = None
        for number in STOPS:
            signal.signal(number, self._on_signal)

    def take_part(self) -> int | None:
        """Run trials and confirmations; the number of the signal that ended it."""
        try:
            with console_logging():
                _take_part(self._folder, self._plan, self._go_on)
        except Stopped as stopped:
            return stopped.signal
        return None

    def close(self) -> None:
        """Nothing is left open."""

    def _go_on(self) -> None:
        if self._stop is not None:
            raise Stopped(self._stop)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = signal.Signals(number)


@contextmanager
def _passing_on(pids: Sequence[int]) -> Iterator[None]:
    """Pass the first stop signal on to processes; a second one has the system's default effect here."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for other in STOPS:
            signal.signal(other, signal.SIG_DFL)
        for pid in pids:
            os.kill(pid, number)

    previous = {number: signal.signal(number, on_signal) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
