"""Checkpoints: one folder each, written aside and renamed, checksummed, never able to execute code.

``<frames>/tensors.safetensors`` holds every tensor, ``state.json`` everything else, ``manifest.json`` the format
version, the config, and the size and SHA-256 of the other two. Knows nothing of training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

FORMAT_VERSION = 1
MANIFEST, TENSORS, STATE = "manifest.json", "tensors.safetensors", "state.json"


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of another format; the message names it."""


@dataclass
class TrainState:
    """Everything of a run that must survive it; the fields are the checkpoint.

    Attributes:
        frames: simulator frames collected.
        iteration: batches trained on.
        best_return: highest mean return of an evaluation; None before the first.
        seconds: training time so far, by kind (``collect``, ``update``, ``eval``, ``total``).
        actor: the policy's parameters.
        critic: the critic's parameters.
        transforms: the environment's transforms, normalisation statistics among them.
        reward_norm: statistics of the reward scaling; empty without it.
        optimizer: moments and step counts.
        scheduler: position in the learning-rate schedule.
        rng: states of the random generators of Python, NumPy and torch.
    """

    frames: int
    iteration: int
    best_return: float | None
    seconds: dict[str, float]
    actor: dict[str, Tensor]
    critic: dict[str, Tensor]
    transforms: dict[str, Tensor]
    reward_norm: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    rng: dict[str, Any]


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


def save(folder: Path, state: TrainState, config: Mapping[str, Any], keep_last: int) -> Path:
    """Write ``folder/<frames>`` so that it is either whole or not there, point ``latest`` to it, and prune.

    Args:
        folder: the run's ``checkpoints``.
        state: what to save.
        config: the resolved config, so that the checkpoint can be evaluated from itself alone.
        keep_last: newest checkpoints to keep; the one that ``best`` names stays as well.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"{state.frames:012d}"
    aside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    payload = {STATE: json.dumps(_pack(fields, "", tensors)).encode(), TENSORS: save_tensors(tensors)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "config": dict(config),
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in payload.items()
        },
    }
    for name, content in {**payload, MANIFEST: json.dumps(manifest, indent=2).encode()}.items():
        _write(aside / name, content)
    _sync(aside)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _sync(folder)
    point(folder, "latest", final)
    _prune(folder, keep_last)
    return final


def point(folder: Path, name: str, checkpoint: Path) -> None:
    """Make ``folder/name`` (``latest``, ``best``) name a checkpoint, at once or not at all."""
    aside = folder / f".{name}.tmp"
    _write(aside, checkpoint.name.encode())
    aside.rename(folder / name)
    _sync(folder)


def resolve(path: Path) -> Path:
    """The checkpoint that a path means: itself, what ``checkpoints/best`` names, or the latest of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if path.name in ("latest", "best") and path.is_file():
        return path.parent / path.read_text().strip()
    folder = path / "checkpoints"
    if (folder / "latest").is_file():
        return folder / (folder / "latest").read_text().strip()
    raise CheckpointError(f"{path} is neither a checkpoint (no {MANIFEST}) nor a run with checkpoints.")


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, or the latest one of a run's folder.

    Raises:
        CheckpointError: there is none, it is damaged, or of a format that this version cannot read.
    """
    path = resolve(path)
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format_version"] != FORMAT_VERSION:
            found = manifest["format_version"]
            raise CheckpointError(f"{path} has format {found}; this version reads {FORMAT_VERSION}.")
        content = {name: (path / name).read_bytes() for name in (STATE, TENSORS)}
        expected = {name: manifest["files"][name]["sha256"] for name in content}
        config = manifest["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}.") from error
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != expected[name]:
            raise CheckpointError(f"{path} is damaged: {name} is not what was saved (SHA-256 differs).")
    fields = _unpack(json.loads(content[STATE]), load_tensors(content[TENSORS]))
    return Checkpoint(path, TrainState(**fields), config)


def _prune(folder: Path, keep_last: int) -> None:
    saved = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
    best = (folder / "best").read_text().strip() if (folder / "best").is_file() else None
    for path in saved[:-keep_last]:
        if path.name != best:
            shutil.rmtree(path)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with a reference in place of each tensor; dictionaries as pairs, since keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint does not hold")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: _unpack(item, tensors) for key, item in content}
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "list":
            return [_unpack(item, tensors) for item in content]
    raise CheckpointError(f"unknown kind {kind!r} in {STATE}")


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
