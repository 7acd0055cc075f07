"""Checkpoints: one folder each, written aside and renamed, checksummed, never able to execute code.

``<frames>/tensors.safetensors`` holds every tensor and ``state.json`` everything else that decides how training goes
on: two runs that are equal have them equal to the byte. ``session.json`` holds what differs even so, such as seconds.
``manifest.json`` holds the format version, the config, the versions of what wrote it, and the size and SHA-256 of the
others and of itself. Knows nothing of training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rlexp.config.legacy import current_config
from rlexp.config.trust import most_weights
from rlexp.runs import migrations
from rlexp.runs.rundir import versions

log = logging.getLogger(__name__)

FORMAT_VERSION = 5
MANIFEST, TENSORS, STATE, SESSION = "manifest.json", "tensors.safetensors", "state.json", "session.json"
_PAYLOAD = {TENSORS, STATE, SESSION}


_NAME = re.compile(r"[0-9]{1,18}")
_LONGEST_NAME = 1000  # bytes
_LARGEST_MANIFEST = 64 * 2**20  # bytes
_DEEPEST_CONFIG = 50
_FEW_WEIGHTS = 2**26
_ATTEMPTS = 100


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of another format; the message names it."""


class _PrunedError(CheckpointError):
    """A checkpoint was removed while it was read."""


@dataclass
class TrainState:
    """Everything of a run that must survive it; the fields are the checkpoint.

    Attributes:
        frames: simulator frames collected.
        iteration: batches trained on.
        evaluator: the newest and the best evaluation.
        actor: the policy's parameters.
        critic: the critic's parameters.
        transforms: the environment's transforms, normalisation statistics among them.
        learner: all else that the learner needs: optimizer, schedule, coefficients, reward statistics.
        simulators: each simulator in the middle of its episode; None where it cannot be had.
        collector: the transition that the next batch starts from.
        callbacks: what each callback gives to remember, by its name.
        rng: states of the random generators of Python, NumPy and torch.
        unverified: whether code of the user's own takes part, which may keep state that cannot be seen.
        inexact: why a run that goes on from here cannot equal one that never stopped; empty where it will.
        session: what differs between runs that are otherwise equal: seconds by kind (``collect``, ``update``,
            ``eval``), and the run's id.
    """

    frames: int
    iteration: int
    evaluator: dict[str, Any]
    actor: dict[str, Tensor]
    critic: dict[str, Tensor]
    transforms: dict[str, Tensor]
    learner: dict[str, Any]
    simulators: dict[str, Any] | None
    collector: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]
    rng: dict[str, Any]
    unverified: bool
    inexact: list[str]
    session: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: its folder.
        state: what was saved.
        config: the resolved config of the run that saved it.
    """

    path: Path
    state: TrainState
    config: dict[str, Any]


def save(folder: Path, state: TrainState, config: Mapping[str, Any], keep_last: int, *, best: bool = False) -> Path:
    """Write ``folder/<frames>`` so that it is either whole or not there, point ``latest`` to it, and prune.

    Killed at any instant, it leaves every checkpoint that was there before, or the new one as well.

    Args:
        folder: the run's ``checkpoints``.
        state: what to save.
        config: the resolved config, so that the checkpoint can be evaluated from itself alone.
        keep_last: newest checkpoints to keep; the one that ``best`` names stays as well.
        best: point ``best`` to it too.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: there is a checkpoint of these frames already; none is ever overwritten.
        OSError: it cannot be written; nothing has changed then.
    """
    final = folder / f"{state.frames:012d}"
    if final.exists():
        raise CheckpointError(f"{final} is there already, and a checkpoint is never overwritten.")
    if not folder.is_dir():
        folder.mkdir(parents=True)
        _sync(folder.parent)
    aside = folder / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for name, content in _content(state, config).items():
            _write(aside / name, content)
        _sync(aside)
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync(folder)
    point(folder, "latest", final)
    if best:
        point(folder, "best", final)
    _prune(folder, keep_last)
    return final


def _content(state: TrainState, config: Mapping[str, Any]) -> dict[str, bytes]:
    tensors: dict[str, Tensor] = {}
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    session = fields.pop("session")
    payload = {
        STATE: json.dumps(_pack(fields, "", tensors)).encode(),
        SESSION: json.dumps(session).encode(),
        TENSORS: save_tensors(tensors),
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "frames": state.frames,
        "exact_resume": False if state.inexact else "unverified" if state.unverified else True,
        "inexact": state.inexact,
        "versions": versions(),
        "config": dict(config),
        "config_sha256": _digest(config),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in payload.items()
        },
    }
    return payload | {MANIFEST: json.dumps(manifest | {"sha256": _digest(manifest)}, indent=2).encode()}


def point(folder: Path, name: str, checkpoint: Path) -> None:
    """Make ``folder/name`` (``latest``, ``best``) name a checkpoint, at once or not at all."""
    aside = folder / f".{name}.tmp"
    _write(aside, checkpoint.name.encode())
    aside.rename(folder / name)
    _sync(folder)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, what ``checkpoints/best`` names, or the newest one of a run's folder that is whole.

    Raises:
        CheckpointError: there is none, it is damaged, or of a format that this version cannot read.
    """
    if path.name in ("latest", "best") and not path.is_dir():
        return _retried(lambda: _load(_pointed_to(path)), path)
    if is_checkpoint(path):
        return _load(path)
    return _retried(lambda: _newest(path), path)


def _newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run's folder that is whole.

    Raises:
        _PrunedError: one was removed while it was read, so that there are newer ones.
        CheckpointError: there is none.
    """
    damaged = []
    for candidate in reversed(saved(run / "checkpoints")):
        try:
            return _load(candidate)
        except _PrunedError:
            raise
        except CheckpointError as error:
            log.warning("Skipped: %s", error)
            damaged.append(str(error))
    if damaged:
        raise CheckpointError("\n  ".join([f"{run} has no checkpoint that is whole:", *damaged]))
    raise CheckpointError(f"{run} is neither a checkpoint (no {MANIFEST}) nor a run with checkpoints.")


def _pointed_to(pointer: Path) -> Path:
    """The checkpoint that ``latest`` or ``best`` names.

    Raises:
        CheckpointError: there is none yet, or it names no checkpoint.
    """
    try:
        name = read_regular(pointer, _LONGEST_NAME).decode().strip()
    except FileNotFoundError as error:
        if pointer.parent.is_dir():
            made = "evaluated" if pointer.name == "best" else "saved"
            message = f"{pointer.parent} has no {pointer.name} checkpoint yet: nothing has been {made} so far."
            raise CheckpointError(f"{message} Name the run's folder for its newest checkpoint.") from error
        raise CheckpointError(f"{pointer} is no checkpoint: there is no such folder.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{pointer} is damaged: {error}.") from error
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} is damaged: it names no checkpoint ({name!r:.80}).")
    return pointer.with_name(name)


def _retried(load: Callable[[], Checkpoint], path: Path) -> Checkpoint:
    """Load what a training may be pruning, again where it was pruned meanwhile."""
    for _ in range(_ATTEMPTS):
        with suppress(_PrunedError):
            return load()
    raise CheckpointError(
        f"{path}: each checkpoint was removed while it was read, as a training does that saves often."
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a path means one checkpoint, be it damaged, and not a run's folder."""
    return (path / MANIFEST).is_file() or path.parent.name == "checkpoints"


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a run's ``checkpoints``, oldest first, damaged ones included."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(path for path in found if _NAME.fullmatch(path.name) and path.is_dir())


def resume_from(checkpoint: Path, best_frames: int | None) -> None:
    """Make a checkpoint the newest of its run, and ``best`` what it was then.

    Newer ones, damaged or left by a training that is taken back, are kept as ``superseded-<frames>``.

    Args:
        checkpoint: where the run goes on from.
        best_frames: the best checkpoint at that time.
    """
    for newer in (path for path in saved(checkpoint.parent) if path.name > checkpoint.name):
        shutil.rmtree(aside := newer.with_name(f"superseded-{newer.name}"), ignore_errors=True)
        newer.rename(aside)
        log.warning("Going on from %s frames: set %s aside as %s.", f"{int(checkpoint.name):,}", newer.name, aside.name)
    _sync(checkpoint.parent)
    point(checkpoint.parent, "latest", checkpoint)
    best = None if best_frames is None else checkpoint.with_name(f"{best_frames:012d}")
    if best is not None and best.is_dir():
        point(checkpoint.parent, "best", best)
    else:
        (checkpoint.parent / "best").unlink(missing_ok=True)


def _load(path: Path) -> Checkpoint:
    try:
        manifest = json.loads(read_regular(path / MANIFEST, _LARGEST_MANIFEST))
        if not isinstance(manifest, dict):
            raise TypeError(f"{MANIFEST} holds no mapping")
        if (found := manifest["format_version"]) not in (*migrations.FORMATS, FORMAT_VERSION):
            writer = manifest.get("versions", {}).get("rlexp")
            raise CheckpointError(
                f"{path} has format {found!r:.20}, written by rlexp {writer!s:.20}; this version reads formats "
                f"{migrations.FORMATS[0]} to {FORMAT_VERSION}."
            )
        if manifest.pop("sha256") != _digest(manifest):
            raise CheckpointError(f"{path} is damaged: {MANIFEST} is not what was saved (SHA-256 differs).")
        if unknown := set(manifest["files"]) ^ _PAYLOAD:
            raise CheckpointError(f"{path} is damaged: {MANIFEST} names other files: {', '.join(sorted(unknown))}.")
        content = {name: _verified(path / name, **entry) for name, entry in manifest["files"].items()}
        fields = _unpack(json.loads(content[STATE]), load_tensors(content[TENSORS]))
        config = manifest["config"]
        if not isinstance(config, dict) or too_deep(config):
            raise TypeError("its config is no mapping, or nested too deeply")
        if found != FORMAT_VERSION:
            config = current_config(config)
            fields = migrations.migrated(found, fields, config)
        state = TrainState(**fields, session=json.loads(content[SESSION]))
        _check_types(state)
        return Checkpoint(path, state, config)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        if not path.exists():
            if path.parent.is_dir():
                raise _PrunedError(f"{path} is not there, or was removed while it was read.") from error
            raise CheckpointError(f"{path} is no checkpoint: there is no such folder.") from error
        raise CheckpointError(f"{path} is damaged: {_reason(error)}.") from error
    except (Exception, MemoryError, RecursionError) as error:  # whatever a damaged or hostile file leads to
        raise CheckpointError(f"{path} is damaged: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    text = str(error) if type(error) in (TypeError, ValueError) else repr(error)
    return "".join(character if character.isprintable() else " " for character in text[:200])


def _check_types(state: TrainState) -> None:
    """Raise a TypeError where a field is none of what `TrainState` says."""
    for name in ("frames", "iteration"):
        if type(value := getattr(state, name)) is not int or value < 0:
            raise TypeError(f"{name} is no count")
    for name in ("evaluator", "learner", "collector", "callbacks", "rng", "session"):
        if not isinstance(getattr(state, name), dict):
            raise TypeError(f"{name} is no mapping")
    for name in ("actor", "critic", "transforms"):
        value = getattr(state, name)
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise TypeError(f"{name} is no mapping of names to tensors")
        if name != "transforms" and not all(isinstance(tensor, Tensor) for tensor in value.values()):
            raise TypeError(f"{name} holds something that is no tensor")
    run_id = state.session.get("run_id")
    if not isinstance(run_id, str) or not re.fullmatch(r"[\w-]{1,64}", run_id):
        raise TypeError("run_id is no name")
    if not isinstance(state.inexact, list) or not all(isinstance(reason, str) for reason in state.inexact):
        raise TypeError("inexact is no list of reasons")
    if not isinstance(state.simulators, dict | None):
        raise TypeError("simulators is no mapping")


def check_size(found: Checkpoint) -> None:
    """Refuse a config whose networks would be far larger than those saved, before they are built.

    Raises:
        CheckpointError: they would be.
    """
    saved = sum(tensor.numel() for part in (found.state.actor, found.state.critic) for tensor in part.values())
    weights = most_weights(found.config.get("policy"))
    if weights > max(_FEW_WEIGHTS, 8 * saved):
        message = f"the policy of its config may have {weights:,} weights, and {saved:,} were saved."
        raise CheckpointError(f"{found.path} is damaged: {message}")


def too_deep(value: Any) -> bool:
    """Whether plain values are nested deeper than any config is."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST_CONFIG):
        level = [item for node in level if isinstance(node, dict | list)
                 for item in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
        if not level:
            return False
    return True


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


def _prune(folder: Path, keep_last: int) -> None:
    best = (folder / "best").read_text().strip() if (folder / "best").is_file() else None
    for path in saved(folder)[:-keep_last]:
        if path.name != best:
            # Renamed first: killed in between, it must not leave half a checkpoint.
            path.rename(folder / f".{path.name}.tmp")
    for leftover in folder.glob(".[0-9]*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with a reference in place of each tensor and array; dictionaries as pairs, since keys may be numbers."""
    match value:
        case Tensor():
            return {"tensor": _put(value.detach().cpu().contiguous().clone(), path, tensors)}
        case np.ndarray() | np.generic():
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return {kind: _put(torch.from_numpy(np.array(value, order="C")), path, tensors)}
        case Mapping():
            return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
        case tuple() | list():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint does not hold")


def _put(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    name = f"{len(tensors):05d}{path}"  # numbered: two paths may read alike
    tensors[name] = tensor
    return name


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
        case "scalar":
            return tensors[content].numpy()[()]
        case "dict":
            return {key: _unpack(item, tensors) for key, item in content}
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "list":
            return [_unpack(item, tensors) for item in content]
    raise ValueError(f"unknown kind {kind!r} in {STATE}")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
