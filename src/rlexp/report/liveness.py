"""Whether the process that works in a folder is alive, as far as this machine can see."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlexp.files import read_regular
from rlexp.machine import process_state

_LONGEST = 4096  # bytes


def owner_of(folder: Path) -> Literal["alive", "dead", "remote"] | None:
    """The state of the process that locked a folder last (`rlexp.runs.rundir.RunDir.lock`).

    Returns:
        ``remote`` for a process of another machine, which cannot be checked; None where no process is known.
    """
    try:
        return process_state(read_regular(folder / ".lock", _LONGEST).decode(errors="replace"))
    except (OSError, ValueError):  # whoever made the folder may have put a pipe there
        return None
