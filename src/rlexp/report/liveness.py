"""Whether the process that works in a folder is alive, as far as this machine can see."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal


def owner_of(folder: Path) -> Literal["alive", "dead", "remote"] | None:
    """The state of the process that locked a folder last (`rlexp.runs.rundir.RunDir.lock`).

    Returns:
        ``remote`` for a process of another machine, which cannot be checked; None where no process is known.
    """
    try:
        text = (folder / ".lock").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    owner = re.fullmatch(r"process (\d{1,9}) on (.+)", text.strip())
    if owner is None:
        return None
    if owner[2] != socket.gethostname():
        return "remote"
    try:
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:  # a process of another user
        pass
    return "alive"
