"""What the commands share: exit codes and the way errors are said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from rlexp.config import ConfigError
from rlexp.redaction import redact


class Exit(IntEnum):
    """Exit codes; a run that a signal stopped exits with 128 plus the signal's number."""

    DONE = 0
    FAILED = 1
    WRONG_CONFIG = 2


def said(name: str, error: Exception) -> int:
    """Say on stderr why a command failed, and give its exit code."""
    print(f"{name}: {redact(str(error))}", file=sys.stderr)
    return Exit.WRONG_CONFIG if isinstance(error, ConfigError) else Exit.FAILED


def run_command(name: str, command: Callable[[list[str]], int]) -> None:
    """Run a command on the process's arguments and exit, telling what is wrong without a traceback."""
    # As with `python script.py`, a user's own modules lie where the command runs.
    sys.path.append(str(Path.cwd()))
    try:
        sys.exit(command(sys.argv[1:]))
    except ConfigError as error:
        sys.exit(said(name, error))
