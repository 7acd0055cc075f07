"""Files that are whole or not there. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
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
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait for every other process that is within this, for the same lock file, and keep them out."""
    with path.open("w") as file:
        # The kernel lets go of it when the process dies: no dead owner can hold it.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
