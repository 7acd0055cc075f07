"""The signals that ask a run or a sweep to save and stop."""

from __future__ import annotations

import signal

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
