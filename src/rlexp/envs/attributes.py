"""The attributes of an object of the user's own, as they are saved: tensors, and what is plain."""

from __future__ import annotations

from collections.abc import Container, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor

from rlexp.envs.saving import StateUnavailableError
from rlexp.envs.values import Seen, check_views, decoded, encoded, restore


def own_attributes(owner: object, base: Container[str]) -> dict[str, Any]:
    """Copies of an object's attributes by their names, those in ``base`` left out.

    Raises:
        StateUnavailableError: one is neither a tensor nor plain, and cannot be saved.
    """
    seen, found = Seen(), {}
    for name, value in vars(owner).items():
        if name in base:
            continue
        if isinstance(value, Tensor):
            found[name] = value.detach().clone()
        else:
            found[name] = deepcopy(encoded(value, f"{type(owner).__qualname__}.{name}", seen, own=True))
    check_views(seen.arrays.values())
    return found


def set_attributes(owner: object, saved: Mapping[str, Any]) -> None:
    """Put back what `own_attributes` returned, tensors where those of the same name are.

    Raises:
        StateUnavailableError: a name is that of a method, and so was not saved.
    """
    made: list[Any] = []
    for name, value in saved.items():
        if callable(getattr(type(owner), name, None)):
            raise StateUnavailableError(f"{type(owner).__qualname__}.{name} is no part of its state")
        present = getattr(owner, name, None)
        if isinstance(value, Tensor):
            device = getattr(owner if present is None else present, "device", None)
            setattr(owner, name, value.to(device, copy=True))
        else:
            restore(owner, name, decoded(deepcopy(value), present, made))
