"""Files that are whole or not there. Imports no torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

_LONGEST_SHARED = 2**24  # bytes
_MOUNTS = Path("/proc/self/mounts")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Options in the table of mounts: the first two are NFS's (nolock is shown as the first), the third is Lustre's.
_LOCAL_LOCKS = {"local_lock=all", "local_lock=flock", "localflock"}


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
    with open(path, "wb", opener=open_own) as file:
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


def open_lock(path: Path) -> IO[str]:
    """A lock file for reading and writing, made where there is none.

    Raises:
        OSError: it cannot be opened, or is a link or no regular file: what is written would go elsewhere.
    """
    return open(path, "r+", encoding="utf-8", opener=lambda name, flags: open_own(name, flags | os.O_CREAT))


def open_own(path: str, flags: int) -> int:
    """As ``os.open``, of a regular file that is in its folder.

    Raises:
        OSError: it cannot be opened, or is a link or no regular file: what is written would go elsewhere.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a link, and what is written would go elsewhere: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return descriptor


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait for every other process that is within this, for the same lock file, and keep them out."""
    with open_lock(path) as file:
        lock(file, wait=True)
        yield


def lock(file: IO[str], *, wait: bool) -> None:
    """Keep other processes out of a lock file that is open for writing, until it is closed.

    Raises:
        BlockingIOError: another process has the lock, and ``wait`` is False.
        OSError: the file system has no locks, or another fault.
    """
    try:
        # The kernel lets go of it when the process dies: no dead owner can hold it.
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise OSError(
            f"{Path(file.name).parent} is on a file system without file locks ({error.strerror}), which keep two "
            "processes from writing one run. Mount it with them (Lustre: -o flock; NFS: not nolock), or choose another "
            "folder: hydra.run.dir=..., or hydra.sweep.dir=... of a sweep."
        ) from error


def locks_are_local(path: Path) -> bool:
    """Whether the file system of an absolute path is mounted so that locks keep out this machine's processes alone."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    options: dict[Path, str] = {}  # a later mount hides an earlier one
    for _, point, _, given, *_ in map(str.split, lines):
        options[Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point))] = given
    given = next((options[folder] for folder in (path, *path.parents) if folder in options), "")
    return not _LOCAL_LOCKS.isdisjoint(given.split(","))


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The plain values of a YAML file that may be anyone's.

    Aliases are refused: a few lines of them stand for gigabytes.

    Raises:
        OSError, ValueError: as `read_shared`.
        yaml.YAMLError: it is no YAML, or has an alias.
    """

    class Plain(loader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"{path.name} holds an alias, which rlexp never writes")
            return super().compose_node(parent, index)

    return yaml.load(read_shared(path), Plain)


def read_shared(path: Path) -> str:
    """The text of a file that a process of another machine may be replacing.

    Raises:
        OSError, ValueError: as `read_regular`, and where it is no text.
    """
    try:
        return read_regular(path, _LONGEST_SHARED).decode()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        # NFS: the file that was opened is gone, and the new one is there.
        return read_regular(path, _LONGEST_SHARED).decode()
