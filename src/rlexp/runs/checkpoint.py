"""Checkpoints: one folder each, checksummed, never able to execute code.

``<frames>/tensors.safetensors`` holds every tensor and ``state.json`` all else that decides what training does
next: two runs that are equal have them equal to the byte. ``session.json`` holds what differs even so, such as seconds.
``manifest.json`` vouches for the others (`rlexp.runs.manifest`). Knows nothing of training, and imports torch only for
the tensors of a checkpoint that has been verified.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import deserialize

from rlexp.config.legacy import current_config
from rlexp.config.trust import most_weights
from rlexp.distributed import LEARNERS
from rlexp.runs import manifest, migrations, store
from rlexp.runs.errors import CheckpointError, PrunedError
from rlexp.runs.manifest import FORMAT_VERSION, MANIFEST, SESSION, STATE, TENSORS
from rlexp.runs.packing import Kind, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_FEW_WEIGHTS = 2**26
_ATTEMPTS = 100


@dataclass
class TrainState:
    """The state of a run; a checkpoint holds these fields.

    Attributes:
        frames: simulator frames collected.
        iteration: batches trained on.
        evaluator: the newest and the best evaluation, and the average of the actor's weights.
        actor: the policy's parameters.
        critic: the critic's parameters.
        transforms: the environment's transforms, normalisation statistics among them.
        learner: all else that the learner needs: optimizer, schedule, coefficients, reward statistics.
        simulators: each simulator in the middle of its episode; None where it cannot be had.
        collector: the transition that the next batch starts from.
        callbacks: the state of each callback, by its name.
        rng: states of the random generators of Python, NumPy and torch.
        unverified: whether code of the user's own takes part, which may keep state that cannot be seen.
        inexact: why a resumed run cannot equal one that never stopped; empty where it will.
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

    @property
    def learners(self) -> int:
        """How many learners trained it; each of several has an entry in ``simulators``, ``collector`` and ``rng``."""
        found = self.rng.get(LEARNERS)
        return len(found) if isinstance(found, list) else 1


_FIELDS = [field.name for field in dataclasses.fields(TrainState)]


class Checkpoint:
    """A checkpoint whose files have been verified.

    Args:
        path: its folder.

    Attributes:
        config: the resolved config of the run that saved it.

    Raises:
        CheckpointError: it is not there, damaged, or of a format that this version cannot read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named():
            self._format, self.config, content = manifest.read(path)
            self.config = current_config(self.config)
            self._tensors = content[TENSORS]
            self._packed = json.loads(content[STATE])
            self._session = json.loads(content[SESSION])
            self._weights = self._check()

    @cached_property
    def state(self) -> TrainState:
        """What was saved."""
        from safetensors.torch import load

        def resolve(kind: Kind, name: str) -> Any:
            tensor = tensors[name]
            return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy()[()]

        with self._named():
            tensors = load(self._tensors)
            return TrainState(**self._fields(resolve))

    def check_size(self) -> None:
        """Refuse a config whose networks would be far larger than those saved, before they are built.

        Raises:
            CheckpointError: they would be.
        """
        weights = most_weights(self.config.get("policy"))
        if weights > max(_FEW_WEIGHTS, 8 * self._weights):
            message = f"the policy of its config may have {weights:,} weights, and {self._weights:,} were saved."
            raise CheckpointError(f"{self.path} is damaged: {message}")

    def _fields(self, resolve: Callable[[Kind, str], Any]) -> dict[str, Any]:
        fields: dict[str, Any] = unpack(self._packed, resolve)
        if self._format != FORMAT_VERSION:
            fields = migrations.migrated(self._format, fields, self.config)
        return fields | {"session": self._session}

    def _check(self) -> int:
        """Check the state's types with a shape in the place of each tensor, and count the networks' weights.

        Raises:
            TypeError, ValueError, KeyError: a field is none of what `TrainState` says.
        """
        shapes = {name: _Shape(tensor["shape"]) for name, tensor in deserialize(self._tensors)}

        def resolve(kind: Kind, name: str) -> Any:
            shape = shapes[name]
            return shape if kind == "tensor" else name if kind == "scalar" else np.zeros(0)  # a scalar may be a key

        fields = self._fields(resolve)
        if fields.keys() != set(_FIELDS):
            raise TypeError(f"it lacks or adds {', '.join(sorted(fields.keys() ^ set(_FIELDS))):.200}")
        for name in ("frames", "iteration"):
            if type(value := fields[name]) is not int or value < 0:
                raise TypeError(f"{name} is no count")
        for name in ("evaluator", "learner", "collector", "callbacks", "rng", "session"):
            if not isinstance(fields[name], dict):
                raise TypeError(f"{name} is no mapping")
        for name in ("actor", "critic", "transforms"):
            value = fields[name]
            if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
                raise TypeError(f"{name} is no mapping of names to tensors")
            if name != "transforms" and not all(isinstance(tensor, _Shape) for tensor in value.values()):
                raise TypeError(f"{name} holds something that is no tensor")
        run_id = fields["session"].get("run_id")
        if not isinstance(run_id, str) or not re.fullmatch(r"[\w-]{1,64}", run_id):
            raise TypeError("run_id is no name")
        if not isinstance(fields["inexact"], list) or not all(isinstance(reason, str) for reason in fields["inexact"]):
            raise TypeError("inexact is no list of reasons")
        if not isinstance(fields["simulators"], dict | None):
            raise TypeError("simulators is no mapping")
        return sum(math.prod(shape) for name in ("actor", "critic") for shape in fields[name].values())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise whatever a damaged or hostile file leads to as an error that names the checkpoint."""
        try:
            yield
        except CheckpointError:
            raise
        except FileNotFoundError as error:
            if not self.path.exists():
                if self.path.parent.is_dir():
                    raise PrunedError(f"{self.path} is not there, or was removed while it was read.") from error
                raise CheckpointError(f"{self.path} is no checkpoint: there is no such folder.") from error
            raise CheckpointError(f"{self.path} is damaged: {_reason(error)}.") from error
        except (Exception, MemoryError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is damaged: {_reason(error)}.") from error


class _Shape(tuple[int, ...]):
    """A tensor's shape, in the place of the tensor."""


def _reason(error: BaseException) -> str:
    text = str(error) if type(error) in (TypeError, ValueError) else repr(error)
    return "".join(character if character.isprintable() else " " for character in text[:200])


def save(folder: Path, state: TrainState, config: Mapping[str, Any], keep_last: int, *, best: bool = False) -> Path:
    """Write ``folder/<frames>``, by `rlexp.runs.store.add`.

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
    from safetensors.torch import save as to_bytes

    fields = {name: getattr(state, name) for name in _FIELDS if name != "session"}
    packed, tensors = pack(fields)
    payload = {
        STATE: json.dumps(packed).encode(),
        SESSION: json.dumps(state.session).encode(),
        TENSORS: to_bytes(tensors),
    }
    about = {
        "frames": state.frames,
        "exact_resume": False if state.inexact else "unverified" if state.unverified else True,
        "inexact": state.inexact,
    }
    content = payload | {MANIFEST: manifest.manifest(about, config, payload)}
    return store.add(folder, state.frames, content, keep_last, best=best)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, what ``checkpoints/best`` names, or the newest one of a run's folder that is whole.

    Raises:
        CheckpointError: there is none, it is damaged, or of a format that this version cannot read.
    """
    if store.is_pointer(path):
        return _retried(lambda: Checkpoint(store.pointed_to(path)), path)
    if store.is_checkpoint(path):
        return Checkpoint(path)
    return _retried(lambda: _newest(path), path)


def _newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run's folder that is whole.

    Raises:
        PrunedError: one was removed while it was read, so that there are newer ones.
        CheckpointError: there is none.
    """
    damaged = []
    for candidate in reversed(store.saved(run / "checkpoints")):
        try:
            return Checkpoint(candidate)
        except PrunedError:
            raise
        except CheckpointError as error:
            log.warning("Skipped: %s", error)
            damaged.append(str(error))
    if damaged:
        raise CheckpointError("\n  ".join([f"{run} has no checkpoint that is whole:", *damaged]))
    raise CheckpointError(f"{run} is neither a checkpoint (no {MANIFEST}) nor a run with checkpoints.")


def _retried(load: Callable[[], Checkpoint], path: Path) -> Checkpoint:
    """Load what a run may be pruning, again where it was pruned meanwhile."""
    before = None
    for _ in range(_ATTEMPTS):
        try:
            return load()
        except PrunedError as error:
            if store.is_pointer(path) and str(error) == before:
                message = f"{path} names {store.pointed_to(path).name}, which is not there."
                raise CheckpointError(f"{message} Name the run's folder for its newest checkpoint.") from error
            before = str(error)
    raise CheckpointError(f"{path}: each checkpoint was removed while it was read, as a run does that saves often.")
