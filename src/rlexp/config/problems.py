"""Problems of a configuration, reported with their remedies."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlexp.errors import RlexpError

NO_SETTING = "there is no such setting."
"""How the message begins where the schema does not have the problem's key."""


@dataclass(frozen=True)
class Problem:
    """A problem of one setting.

    Attributes:
        key: full path of the setting, as on the command line (``loss.clip_epsilon``).
        message: what is wrong, what is allowed and, if there is one, the remedy.
        value: the value given, as it is shown; None where it is not shown.
    """

    key: str
    message: str
    value: str | None = None

    def under(self, prefix: str) -> Problem:
        """The same problem with ``prefix`` before its key."""
        return Problem(f"{prefix}{self.key}", self.message, self.value)

    def __str__(self) -> str:
        given = self.key if self.value is None else f"{self.key}={self.value}"
        return f"{given}\n    {self.message}"


class ConfigError(RlexpError):
    """The configuration or the command line is wrong; holds every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {p}" for p in problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to ``name`` in spelling, or None if none is close."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """A sentence that suggests the candidates with the name as a word, else the nearest, else lists all of them."""
    options = sorted(candidates)
    matches = [option for option in options if name in option.split("_")]
    if not matches and (match := nearest(name, options)) is not None:
        matches = [match]
    if matches:
        return f"Did you mean {' or '.join(f'{prefix}{match}' for match in matches)}?"
    return f"Available: {', '.join(options)}." if options else ""
