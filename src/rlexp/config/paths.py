"""Settings that are paths: text, whatever it looks like. Hydra would read ``resume=007`` as the number 7."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PATHS = ("resume", "warm_start", "loss.teacher", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir")
_SWEPT = ("warm_start", "loss.teacher")


def quoted(text: str) -> str:
    """A text as an override's value, whatever characters it has."""
    # Hydra reads a backslash as an escape only where a quote follows.
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def unquoted(text: str) -> str:
    """A path without the quotes that Hydra's grammar would need, unless they are part of a name that exists."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" and not _exists(text):
        return text[1:-1]
    return text


def literal(text: str) -> str:
    """An override whose value is a path, quoted so that Hydra reads it as it is written; any other is unchanged."""
    key, equals, value = text.partition("=")
    if not equals or key.lstrip("+") not in _PATHS or not value or value[0] in "'\"":
        return text
    if value == "null" and not _exists(value):
        return text
    return f"{key}={quoted(value)}"


def alternatives(text: str) -> Iterator[str] | None:
    """The overrides of a sweep over paths (``warm_start=run_1,run_2``); None where the setting is no such path."""
    key, _, value = text.partition("=")
    if key.lstrip("+") not in _SWEPT or "," not in value or value[0] in "'\"" or "(" in value or _exists(value):
        return None
    return (literal(f"{key}={part.strip()}") for part in value.split(","))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
