"""What workers and spawned processes hold or run, in a module that they find and that imports nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


class Subject:
    """What the workers of these tests hold."""

    def __init__(self, number: int, fault: str = "", mark: str | None = None) -> None:
        if fault == "refused":
            raise ValueError(f"{number} is refused")
        if fault == "broken":
            raise ZeroDivisionError
        self.number, self.mark = number, mark

    def add(self, other: int) -> int:
        return self.number + other

    def refuse(self) -> None:
        raise ValueError(f"{self.number} is refused")

    def fail(self, fault: str) -> None:
        match fault:
            case "exception":
                raise ZeroDivisionError
            case "end of file":
                raise EOFError("of a file of the simulator's own")
            case "sys.exit":
                sys.exit(0)
            case "os._exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)

    def close(self) -> None:
        if self.mark is not None:
            Path(self.mark).write_text("closed")


def one_that_fails(task: str, seed: int) -> tuple[int, float, float]:
    """In the place of `zoo.train`: the run of seed 1 fails."""
    if seed == 1:
        raise ValueError("diverged")
    return 2048, 1.0, float(seed)
