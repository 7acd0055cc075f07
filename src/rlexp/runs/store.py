"""A run's folder of checkpoints: one folder each, named by its frames, and the names ``latest`` and ``best``.

A checkpoint is written aside and renamed, so that it is whole or not there. Knows nothing of what is in one.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from rlexp.files import read_regular, sync, write_bytes
from rlexp.runs.errors import CheckpointError
from rlexp.runs.manifest import MANIFEST

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9]{1,18}")
_SUPERSEDED = "superseded-"
_SET_ASIDE = re.compile(rf"{_SUPERSEDED}{_NAME.pattern}(-[0-9]{{1,9}})?")
_LONGEST_NAME = 1000  # bytes


def add(folder: Path, frames: int, content: Mapping[str, bytes], keep_last: int, *, best: bool) -> Path:
    """Write ``folder/<frames>`` so that it is either whole or not there, point ``latest`` to it, and prune.

    Killed at any instant, it leaves every checkpoint that was there before, or the new one as well.

    Args:
        folder: the run's ``checkpoints``.
        frames: the checkpoint's name.
        content: its files.
        keep_last: newest checkpoints to keep; the one that ``best`` names stays as well.
        best: point ``best`` to it too.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: there is a checkpoint of these frames already; none is ever overwritten.
        OSError: it cannot be written; nothing has changed then.
    """
    final = folder / f"{frames:012d}"
    if final.exists():
        raise CheckpointError(f"{final} is there already, and a checkpoint is never overwritten.")
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)
    aside = folder / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for name, data in content.items():
            write_bytes(aside / name, data)
        sync(aside)
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(folder)
    point(folder, "latest", final)
    if best:
        point(folder, "best", final)
    _prune(folder, keep_last)
    return final


def point(folder: Path, name: str, checkpoint: Path) -> None:
    """Make ``folder/name`` (``latest``, ``best``) name a checkpoint, at once or not at all."""
    aside = folder / f".{name}.tmp"
    write_bytes(aside, checkpoint.name.encode())
    aside.rename(folder / name)
    sync(folder)


def pointed_to(pointer: Path) -> Path:
    """The checkpoint that ``latest`` or ``best`` names.

    Raises:
        CheckpointError: there is none yet, or it names no checkpoint.
    """
    try:
        name = read_regular(pointer, _LONGEST_NAME).decode().strip()
    except FileNotFoundError as error:
        if pointer.parent.is_dir():
            made = "evaluated since the run began, or went back to an earlier checkpoint"
            made = made if pointer.name == "best" else "saved so far"
            message = f"{pointer.parent} has no {pointer.name} checkpoint yet: nothing has been {made}."
            raise CheckpointError(f"{message} Name the run's folder for its newest checkpoint.") from error
        raise CheckpointError(f"{pointer} is no checkpoint: there is no such folder.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} is damaged: {error}.") from error
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} is damaged: it names no checkpoint ({name!r:.80}).")
    return pointer.with_name(name)


def is_pointer(path: Path) -> bool:
    """Whether a path means what ``latest`` or ``best`` names, be it missing."""
    return path.name in ("latest", "best") and not path.is_dir()


def is_checkpoint(path: Path) -> bool:
    """Whether a path means one checkpoint, be it damaged, and not a run's folder."""
    named = _NAME.fullmatch(path.name) or _SET_ASIDE.fullmatch(path.name)
    return (path.parent.name == "checkpoints" and named is not None) or (path / MANIFEST).is_file()


def is_superseded(path: Path) -> bool:
    """Whether a checkpoint was set aside when its run was resumed from an earlier one."""
    return path.name.startswith(_SUPERSEDED)


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a run's ``checkpoints``, oldest first, damaged ones included."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def resume_from(checkpoint: Path, best_frames: int | None) -> bool:
    """Make a checkpoint the newest of its run, and ``best`` what it was then.

    Newer ones, which are damaged or belong to what is trained again, are kept as ``superseded-<frames>``, those of the
    same frames from a second time on as ``superseded-<frames>-2`` and so on.

    Args:
        checkpoint: what the run resumes from.
        best_frames: the best checkpoint at that time.

    Returns:
        Whether that is still there; it was pruned if a newer one was better.
    """
    for newer in (path for path in saved(checkpoint.parent) if path.name > checkpoint.name):
        name = f"{_SUPERSEDED}{newer.name}"
        aside, time = newer.with_name(name), 1
        while aside.is_symlink() or aside.exists():
            aside = newer.with_name(f"{name}-{(time := time + 1)}")
        newer.rename(aside)
        log.warning("Resuming from %s frames: set %s aside as %s.", f"{int(checkpoint.name):,}", newer.name, aside.name)
    sync(checkpoint.parent)
    point(checkpoint.parent, "latest", checkpoint)
    best = None if best_frames is None else checkpoint.with_name(f"{best_frames:012d}")
    if best is not None and best.is_dir():
        point(checkpoint.parent, "best", best)
        return True
    (checkpoint.parent / "best").unlink(missing_ok=True)
    return best is None


def _prune(folder: Path, keep_last: int) -> None:
    best = (folder / "best").read_text().strip() if (folder / "best").is_file() else None
    for path in saved(folder)[:-keep_last]:
        if path.name != best:
            # Renamed first: killed in between, it must not leave half a checkpoint.
            path.rename(folder / f".{path.name}.tmp")
    for leftover in folder.glob(".[0-9]*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
