"""Keys, tokens and passwords, kept out of everything that a run writes."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

REDACTED = "<redacted>"

_SETTING = re.compile(
    r"(?:^|[._-])(?:(?:api|access|private|secret|auth)[_-]?key|token|passw(?:or)?d|passphrase|secret|credentials?)$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"(?:^|_)(?:KEY|TOKEN|PASSW(?:OR)?D|PASSPHRASE|SECRET|CREDENTIALS?)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SHORTEST = 8  # characters; a shorter value would be found where it is not meant


def redact(value: Any) -> Any:
    """The same plain values with every secret replaced by ``<redacted>``.

    A secret is the value of a setting that is named like one (``api_key``, ``token``, ``password``, ...), in a mapping
    or written as ``key=value``; the value of an environment variable that is named like one, wherever it stands; and
    the user and password in a URL.
    """
    return _redact(value, sorted(_known(), key=len, reverse=True))


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret(str(key), item) else _redact(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, known) for item in value]
    if isinstance(value, str):
        key, separator, rest = value.partition("=")
        if separator and _is_secret(key.strip(), rest):
            return f"{key}={REDACTED}"
        for secret in known:
            value = value.replace(secret, REDACTED)
        return _IN_URL.sub(REDACTED, value)
    return value


def _is_secret(key: str, value: object) -> bool:
    if not isinstance(value, str | int | float) or value == "" or str(value).startswith("${"):
        return False  # an interpolation, such as ${oc.env:API_KEY}, is no secret yet
    return _SETTING.search(key) is not None


def _known() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name):
            yield value
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if len(value) >= _SHORTEST and _SETTING.search(key):
            yield value


class RedactingFormatter(logging.Formatter):
    """Formats a message, traceback and all, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it may be seen."""
        return str(_redact(super().format(record), sorted(_known(), key=len, reverse=True)))
