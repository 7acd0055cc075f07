"""Keys, tokens and passwords, kept out of everything that a run writes."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlexp.config.problems import Problem
from rlexp.text import printable

REDACTED = "<redacted>"

_SETTING = re.compile(
    r"(?:^|[._-])(?:(?:api|access|private|secret|auth|signing|encryption)[_-]?key|passw(?:or)?d|passphrase|secret"
    r"|(?:api|access|auth|bearer|refresh|session|secret)[_-]?token|credentials?)$",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?:^|[._-])token$", re.IGNORECASE)  # of a service, or of a vocabulary: the value tells
_VARIABLE = re.compile(r"(?:^|_)(?:KEYS?|TOKEN|PAT|PASS(?:W(?:OR)?D|PHRASE)?|SECRET|CREDENTIALS?|DSN)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
# Keys that say by their form whose they are: OpenAI, GitHub, GitLab, Slack, AWS, Hugging Face, Google; JSON web tokens.
_KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|gh[opsur]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|hf_\w{30,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_ENTRY = re.compile(r"""([\w.-]+)\s*:\s*('[^']*'|"[^"]*"|[^,{}\[\]]+)""")  # of a mapping on the command line
_IN_SOURCE = re.compile(  # key = "text", key: "text", key: str = "text", "key": "text", key: text
    r"""([\w.-]+)["']?\s*(?::\s*[\w\[\], |]+=|[:=])\s*("[^"]*"|'[^']*'|[^\s"',#]+)"""
)
_WORD = re.compile(r"[A-Za-z_<>|\[\] ./-]*")
_SHORTEST = 8  # characters; a shorter value would be found where it is not meant
_NOT_BUILT = ("logger.", "evaluation.", "checkpoint.", "warm_start")
_remembered: set[str] = set()


def redact(value: Any) -> Any:
    """The same plain values with every secret replaced by ``<redacted>``. Numbers and booleans are never secrets.

    A secret is the text of a setting that is named like one (``api_key``, ``auth_token``, ``password``, ...), in a
    mapping or written as ``key=value``; the text of a ``token`` that is no word; a text in the form of a known
    service's keys; the value of an environment variable that is named like a secret, or of a setting that was
    remembered, wherever it stands; and the user and password in a URL.
    """
    return _redact(value, _known())


def remember_secrets(config: Mapping[str, Any]) -> None:
    """Redact a config's secrets wherever this process writes them from now on."""
    _remembered.update(
        text
        for path, text in _texts(config)
        if len(text) >= _SHORTEST and _is_secret_at(path, text) and REDACTED not in text
    )


def hidden_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a config that `redact` changes, by the paths of their settings."""
    return {p: text for p, text in _texts(config) if _is_secret_at(p, text) or redact({p: text}) != {p: text}}


def hide(state: Any, hidden: Mapping[str, str]) -> Any:
    """Nested state with the name of a hidden setting in place of its text; short ones only where they stand alone."""
    return _replaced(state, {text: _placeholder(path) for path, text in hidden.items()})


def reveal(state: Any, hidden: Mapping[str, str]) -> Any:
    """What `hide` was given, with the settings' texts of today."""
    return _replaced(state, {_placeholder(path): text for path, text in hidden.items()})


def _placeholder(path: str) -> str:
    return f"<redacted: {path}>"


def _replaced(state: Any, names: Mapping[str, str]) -> Any:
    if not names:
        return state
    # In one pass, the longest first: a replacement may contain another of the texts.
    long = sorted((text for text in names if len(text) >= _SHORTEST), key=len, reverse=True)
    inside = re.compile("|".join(map(re.escape, long)) or r"(?!)")

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(replaced, value))
        if not isinstance(value, str):
            return value
        return names.get(value) or inside.sub(lambda found: names[found[0]], value)

    return replaced(state)


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config, by its path."""
    below = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in below:
        yield from _texts(item, f"{path}.{key}" if path else str(key))
    if isinstance(value, str):
        yield path, value


def with_secrets(values: Mapping[str, Any], secrets: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A saved config with the values of its hidden settings.

    Args:
        values: the config, as `redact` left it.
        secrets: values by their full paths (``env.kwargs.api_key``).

    Returns:
        The config, and what is wrong: a hidden setting that decides what is built and whose value is not given, and a
        value of a setting that is not hidden.
    """
    given, problems = dict(secrets), []

    def laid(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {key: laid(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        if isinstance(value, list):
            return [laid(item, f"{path}.{index}") for index, item in enumerate(value)]
        if not (isinstance(value, str) and REDACTED in value) or path.startswith(_NOT_BUILT):
            return value
        if path in given:
            return given.pop(path)
        problems.append(Problem(path, f"is a secret and was not saved: give it again with {path}=..."))
        return value

    found = laid(values, "")
    problems += [Problem(path, "is no setting whose value was hidden when the run was saved.") for path in given]
    return found, problems


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _without_known(key, known) if isinstance(key, str) else key: (
                _hidden(item) if _is_secret(str(key), item) else _redact(item, known)
            )
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(item, known) for item in value]
    if isinstance(value, str):
        key, separator, rest = value.partition("=")
        if separator and _is_secret(key.strip(), rest):
            return f"{key}={REDACTED}"
        if separator and rest.startswith(("{", "[")):
            value = f"{key}={_ENTRY.sub(_redacted_entry, rest)}"
        return _without_known(value, known)
    return value


def _without_known(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    return _KEY.sub(REDACTED, _IN_URL.sub(REDACTED, text))


def redact_source(lines: Sequence[str]) -> list[str]:
    """Lines of code or configuration without the texts that are assigned to names like a secret's."""
    known = _known()

    def replaced(found: re.Match[str]) -> str:
        key, text = found.groups()
        quote = text[0] if text[0] in "'\"" else ""
        hidden = f"{quote}{REDACTED}{quote}"
        return found[0].removesuffix(text) + hidden if _is_secret(key, text.strip("'\"")) else found[0]

    return [_without_known(_IN_SOURCE.sub(replaced, line), known) for line in lines]


def _hidden(value: Any) -> Any:
    """A secret, or all texts of a mapping or list that is one."""
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return REDACTED if isinstance(value, str) and _may_be_secret(value) else value


def _redacted_entry(found: re.Match[str]) -> str:
    key, text = found.groups()
    return f"{key}: {REDACTED}" if _is_secret(key, text.strip().strip("'\"")) else found[0]


def _is_secret(key: str, value: object) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return _SETTING.search(key) is not None
    if not isinstance(value, str) or not _may_be_secret(value):
        return False
    if _SETTING.search(key):
        return True
    return _TOKEN.search(key) is not None and len(value) >= _SHORTEST and not _WORD.fullmatch(value)


def _is_secret_at(path: str, text: str) -> bool:
    """Whether the text at a full path is a secret, or part of one."""
    *above, key = path.split(".")
    return _is_secret(key, text) or (_may_be_secret(text) and any(map(_SETTING.search, above)))


def _may_be_secret(text: str) -> bool:
    """False for a number, and for an interpolation such as ${oc.env:API_KEY}, which is no secret yet."""
    return text != "" and not text.startswith("${") and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "null", "none")
    return True


def _known() -> list[str]:
    """Every secret that this process knows of, the longest first: a shorter one may be part of it."""
    return sorted(_found(), key=len, reverse=True)


def _found() -> Iterator[str]:
    yield from _remembered
    for name, value in os.environ.items():
        # A variable such as SORT_KEY=name holds a word, which stands in many places.
        plain = _is_number(value) or (name.upper().endswith(("KEY", "TOKEN")) and _WORD.fullmatch(value))
        if len(value) >= _SHORTEST and _VARIABLE.search(name) and not plain:
            yield value
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if len(value) >= _SHORTEST and _is_secret(key, value):
            yield value


class RedactingFormatter(logging.Formatter):
    """Formats a message, traceback and all, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as it may be seen, and with nothing that a terminal obeys."""
        return printable(_redact(super().format(record), _known()), keep="\n\t")
