"""Files that are whole or not there. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file as a whole, never half of it."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, never half of it, and on disk before this returns.

    Where several processes write one file, each reads what it writes and writes it within `alone`.
    """
    aside = path.with_name(f".{path.name}.tmp")
    write_bytes(aside, text.encode())
    aside.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is on disk before this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, limit: int) -> bytes:
    """A file's content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file (a device, a named pipe, a folder), or larger than ``limit`` bytes.
    """
    # A named pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is no regular file")
        if found.st_size > limit:
            raise ValueError(f"{path.name} has {found.st_size:,} bytes, more than {limit:,}")
        return file.read(found.st_size + 1)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait for every other process that is within this, for the same lock file, and keep them out."""
    with path.open("w") as file:
        # The kernel lets go of it when the process dies: no dead owner can hold it.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
