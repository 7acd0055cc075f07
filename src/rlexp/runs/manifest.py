"""``manifest.json``: what a checkpoint's other files must be, to the byte, and the config that they belong to.

Everything is checked that can be without torch, so that damaged and hostile files are refused before it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlexp.files import read_regular
from rlexp.runs import migrations
from rlexp.runs.errors import CheckpointError
from rlexp.runs.rundir import versions

FORMAT_VERSION = 5
MANIFEST, TENSORS, STATE, SESSION = "manifest.json", "tensors.safetensors", "state.json", "session.json"
_PAYLOAD = {TENSORS, STATE, SESSION}

_LARGEST_MANIFEST = 64 * 2**20  # bytes
_DEEPEST_CONFIG = 50


def manifest(values: Mapping[str, Any], config: Mapping[str, Any], payload: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint's files.

    Args:
        values: further entries.
        config: the resolved config.
        payload: the files' contents.
    """
    entries = {
        "format_version": FORMAT_VERSION,
        **values,
        "versions": versions(),
        "config": dict(config),
        "config_sha256": _digest(config),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in payload.items()
        },
    }
    return json.dumps(entries | {"sha256": _digest(entries)}, indent=2).encode()


def read(path: Path) -> tuple[int, dict[str, Any], dict[str, bytes]]:
    """Read a checkpoint's files, each verified against the manifest.

    Returns:
        The format, the config, and the files' contents by their names.

    Raises:
        CheckpointError: they are not what was saved, or of a format that this version cannot read.
        OSError, ValueError, TypeError, KeyError: the manifest is none, or a file cannot be read.
    """
    entries = json.loads(read_regular(path / MANIFEST, _LARGEST_MANIFEST))
    if not isinstance(entries, dict):
        raise TypeError(f"{MANIFEST} holds no mapping")
    if (found := entries["format_version"]) not in (*migrations.FORMATS, FORMAT_VERSION):
        writer = entries.get("versions", {}).get("rlexp")
        raise CheckpointError(
            f"{path} has format {found!r:.20}, written by rlexp {writer!s:.20}; this version reads formats "
            f"{migrations.FORMATS[0]} to {FORMAT_VERSION}."
        )
    if entries.pop("sha256") != _digest(entries):
        raise CheckpointError(f"{path} is damaged: {MANIFEST} is not what was saved (SHA-256 differs).")
    if unknown := set(entries["files"]) ^ _PAYLOAD:
        raise CheckpointError(f"{path} is damaged: {MANIFEST} names other files: {', '.join(sorted(unknown))}.")
    content = {name: _verified(path / name, **entry) for name, entry in entries["files"].items()}
    config = entries["config"]
    if not isinstance(config, dict) or too_deep(config):
        raise TypeError("its config is no mapping, or nested too deeply")
    return found, config, content


def too_deep(value: Any) -> bool:
    """Whether plain values are nested deeper than any config is."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST_CONFIG):
        level = [item for node in level if isinstance(node, dict | list)
                 for item in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
        if not level:
            return False
    return True


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _verified(path: Path, bytes: int, sha256: str) -> bytes:
    if path.is_file() and path.stat().st_size != bytes:  # before it is read: it may be huge
        message = f"{path.name} has {path.stat().st_size:,} bytes, not {bytes:,}."
        raise CheckpointError(f"{path.parent} is damaged: {message}")
    content = read_regular(path, _memory() // 2)
    if len(content) != bytes:
        raise CheckpointError(f"{path.parent} is damaged: {path.name} has {len(content):,} bytes, not {bytes:,}.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path.parent} is damaged: {path.name} is not what was saved (SHA-256 differs).")
    return content


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
