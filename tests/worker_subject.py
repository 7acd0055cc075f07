"""What the workers of `test_workers` hold, in a module that imports nothing heavy."""

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
