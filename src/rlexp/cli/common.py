"""What the commands share: exit codes, the way errors are said, and settings given as ``key=value``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlexp.config import Config, ConfigError, Problem, read
from rlexp.config.redaction import redact
from rlexp.text import printable

S = TypeVar("S", bound=Config)


class Exit(IntEnum):
    """Exit codes; a run that a signal stopped exits with 128 plus the signal's number."""

    DONE = 0
    FAILED = 1
    WRONG_CONFIG = 2


def said(name: str, error: Exception) -> int:
    """Say on stderr why a command failed, and give its exit code."""
    print(printable(f"{name}: {redact(str(error))}", keep="\n"), file=sys.stderr)
    return Exit.WRONG_CONFIG if isinstance(error, ConfigError) else Exit.FAILED


def run_command(name: str, command: Callable[[list[str]], int], usage: str | None = None) -> None:
    """Run a command on the process's arguments and exit, telling what is wrong without a traceback.

    Args:
        name: the command's.
        command: from arguments to an exit code.
        usage: what ``--help`` prints; None leaves that to the command.
    """
    if usage is not None and {"--help", "-h"} & set(sys.argv[1:]):
        print(usage)
        sys.exit(Exit.DONE)
    # As with `python script.py`, a user's own modules lie where the command runs.
    sys.path.append(str(Path.cwd()))
    try:
        sys.exit(command(sys.argv[1:]))
    except ConfigError as error:
        sys.exit(said(name, error))


def read_settings(cls: type[S], arguments: Sequence[str], known: Sequence[Problem] = (), **positional: object) -> S:
    """The settings of a command that takes a few and composes no config.

    Args:
        cls: what it takes.
        arguments: ``key=value`` each.
        known: problems found before, to be told with the others.
        positional: settings that are given without a name.

    Raises:
        ConfigError: with everything that is wrong with the command line.
    """
    unread = [Problem(text, "cannot be read as key=value.") for text in arguments if not text.partition("=")[1]]
    pairs = [argument for argument in arguments if "=" in argument]
    problems = [*known, *unread]
    try:
        values = OmegaConf.to_container(OmegaConf.from_cli(pairs), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*problems, Problem(" ".join(pairs), f"cannot be read as key=value: {error}.")]) from error
    assert isinstance(values, dict)
    return read(cls, {**{str(key): value for key, value in values.items()}, **positional}, problems)
