"""What the commands share: exit codes, how errors are reported, and settings given as ``key=value``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlexp.config import Config, ConfigError, Problem, load, read
from rlexp.config.paths import unquoted
from rlexp.config.redaction import RedactingFormatter, redact
from rlexp.distributed import launched, process_name
from rlexp.errors import RlexpError
from rlexp.text import printable

S = TypeVar("S", bound=Config)

_OF_A_RUN = ("env.", "policy.", "collector.", "loss.", "optim.", "callbacks.")


class Exit(IntEnum):
    """Exit codes; a run that a signal stopped exits with 128 plus its number, with 0 for SIGUSR1."""

    DONE = 0
    FAILED = 1
    WRONG_CONFIG = 2


def report_error(name: str, error: Exception) -> int:
    """Print on stderr why a command failed.

    Returns:
        The exit code.
    """
    who = ", ".join(filter(None, (name, process_name())))
    print(printable(f"{who}: {redact(str(error))}", keep="\n"), file=sys.stderr)
    return Exit.WRONG_CONFIG if isinstance(error, ConfigError) else Exit.FAILED


def run_command(name: str, command: Callable[[list[str]], int], usage: str | None = None) -> None:
    """Run a command on the process's arguments and exit, reporting what is wrong without a traceback.

    Args:
        name: the command's.
        command: from arguments to an exit code.
        usage: what ``--help`` prints; None leaves that to the command.
    """
    if usage is not None and {"--help", "-h"} & set(sys.argv[1:]):
        print(usage)
        sys.exit(Exit.DONE)
    if logging.lastResort is not None:  # of warnings, where a command sets up no logging
        logging.lastResort.setFormatter(RedactingFormatter("%(message)s"))
    try:
        code = command(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (RlexpError, OSError) as error:
        sys.exit(report_error(name, error))


def refuse_learners(command: str) -> None:
    """Refuse a command that trains many runs, where torchrun has started several processes.

    Raises:
        ConfigError: it has.
    """
    if launched() > 1:
        message = "trains many runs, and torchrun has started the learners of one: use one or the other."
        raise ConfigError([Problem(command, message)])


def import_from_here() -> None:
    """Let modules be imported that lie where the command runs, as with ``python script.py``.

    Only for what the user names: a run's folder that came from elsewhere may hold modules as well.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def split_secrets(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments that are a command's own, and values for hidden settings of a run (``env.kwargs.api_key=...``)."""
    own, secrets = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.lstrip("+").startswith(_OF_A_RUN):
            secrets[key.lstrip("+")] = unquoted(value)
        else:
            own.append(argument)
    return own, secrets


def split_trust(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages that ``trust=[...]`` names, and the other overrides."""
    trusting = [text for text in overrides if text.lstrip("+").startswith("trust=")]
    packages = load(trusting).values.get("trust") or [] if trusting else []
    return [str(package) for package in packages], [text for text in overrides if text not in trusting]


def read_settings(
    cls: type[S],
    arguments: Sequence[str],
    known: Sequence[Problem] = (),
    paths: Collection[str] = (),
    **positional: object,
) -> S:
    """The settings of a command that takes a few and composes no config.

    Args:
        cls: what it takes.
        arguments: ``key=value`` each.
        known: problems found before, reported with the others.
        paths: settings that are paths, and read as they are written: ``007`` is no number.
        positional: settings that are given without a name.

    Raises:
        ConfigError: with everything that is wrong with the command line.
    """
    unread = [_unread(text, paths) for text in arguments if "=" not in text]
    named = {key: unquoted(value) for key, equals, value in (a.partition("=") for a in arguments)
             if equals and key in paths}  # fmt: skip
    pairs = [argument for argument in arguments if "=" in argument and argument.partition("=")[0] not in paths]
    problems = [*known, *unread]
    try:
        values = OmegaConf.to_container(OmegaConf.from_cli(pairs), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError([*problems, Problem(" ".join(pairs), f"cannot be read as key=value: {error}.")]) from error
    assert isinstance(values, dict)
    return read(cls, {**{str(key): value for key, value in values.items()}, **named, **positional}, problems)


def _unread(text: str, paths: Collection[str]) -> Problem:
    hint = f" Did you mean {next(iter(paths))}={text}?" if paths and Path(text).exists() else ""
    return Problem(text, f"cannot be read as key=value.{hint}")
