"""The signals that ask a run or a sweep to save and stop."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):  # noqa: N818 - a signal is no error
    """A signal stopped the work, after what was under way was saved.

    Attributes:
        signal: which one.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}")
        self.signal = received

    @property
    def exit_code(self) -> int:
        """0 for SIGUSR1, a scheduler's request to be requeued; 128 plus the signal's number for others."""
        return 0 if self.signal is signal.SIGUSR1 else 128 + self.signal


class StopSignals:
    """Takes the signals that ask to stop, until it is closed; a second one of any of them ends the process at once.

    Attributes:
        stop: the signal that came; None before.
    """

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def open(self) -> None:
        """Take them from now on; Python lets only the main thread do so."""
        if threading.current_thread() is not threading.main_thread():
            log.info("Trained in a thread: signals that ask to stop are left to the program.")
            return
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOPS}

    def close(self) -> None:
        """Leave them to whoever took them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = signal.Signals(number)
        for other in STOPS:
            signal.signal(other, signal.SIG_DFL)  # the system ends the process itself, whatever it is busy with
        log.warning("%s: finishing this batch and saving; a second signal stops at once.", self.stop.name)
