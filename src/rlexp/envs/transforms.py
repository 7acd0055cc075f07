"""What transforms of the user's own keep in plain attributes, which torch's state dicts leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torchrl.envs import Compose, Transform, TransformedEnv

from rlexp.envs.snapshot import StateUnavailableError, is_plain

_PACKAGES = ("torchrl", "rlexp")
_BASE = {*vars(Transform()), "in_keys", "out_keys", "in_keys_inv", "out_keys_inv"}


def attributes(env: TransformedEnv) -> dict[str, dict[str, Any]]:
    """The plain attributes of each transform that is neither torchrl's nor ours, by its position.

    Raises:
        StateUnavailableError: one holds something else, which cannot be saved.
    """
    found: dict[str, dict[str, Any]] = {}
    for position, transform in _own(env):
        values = {name: value for name, value in vars(transform).items() if name not in _BASE}
        for name, value in values.items():
            if not (isinstance(value, Tensor) or is_plain(value)):
                kind = type(value).__qualname__
                raise StateUnavailableError(f"{type(transform).__qualname__}.{name} is a {kind}, which cannot be saved")
        if values:
            found[position] = values
    return found


def load_attributes(env: TransformedEnv, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `attributes` returned."""
    for position, transform in _own(env):
        for name, value in saved.get(position, {}).items():
            setattr(transform, name, value)


def _own(env: TransformedEnv) -> Iterator[tuple[str, Transform]]:
    transforms: Compose = env.transform
    for position, transform in enumerate(transforms):
        if type(transform).__module__.split(".")[0] not in _PACKAGES:
            yield str(position), transform
