"""A watchdog over the simulators of this process: one that hangs ends the run, and is named."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.errors import SimulatorError

log = logging.getLogger(__name__)

_GRACE = 5.0  # seconds


class Watchdog:
    """Raises in the main thread when one of the simulators takes too long; a context manager.

    The error is raised by a signal, which interrupts sleeps, system calls and Python code. Where it has no effect, in a
    library's loop, the process is ended.

    Args:
        timeout: seconds that one call of ``step`` or ``reset`` may take.
        envs: the environments to watch, whatever their kind; there may come more.
        give_up: what is done with the message before the process is ended; None leaves it alive.

    Raises:
        SimulatorError: in the block, a simulator hangs.
    """

    def __init__(self, timeout: float, envs: Sequence[object], give_up: Callable[[str], None] | None = None) -> None:
        self._timeout, self._envs, self._give_up = timeout, envs, give_up
        self._done = threading.Event()
        self._message: str | None = None
        self._previous: Any = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGALRM, self._on_alarm)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()
            signal.signal(signal.SIGALRM, self._previous)

    def _watch(self) -> None:
        since: dict[int, tuple[object, float]] = {}
        turn, now = min(1.0, self._timeout / 4), 0.0
        while not self._done.wait(turn):
            now += turn  # the clock's time passes while this process is stopped (Ctrl-Z, SIGSTOP) as well
            for env in tuple(self._envs):
                at = env.at if isinstance(env, ArrayEnv) else None
                before, start = since.get(id(env), (None, now))
                if at is None or at != before:
                    since[id(env)] = (at, now)
                elif now - start > self._timeout:
                    self._end(f"{at[1]} has not returned for {self._timeout:g} s (collector.timeout).")
                    return

    def _end(self, message: str) -> None:
        self._message = message
        log.error("%s", message)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        if not self._done.wait(_GRACE) and self._give_up is not None:
            self._give_up(message)
            os._exit(1)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._message is not None:
            raise SimulatorError(self._message)
        if callable(self._previous):
            self._previous(number, frame)
