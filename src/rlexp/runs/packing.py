"""Nested values as JSON and a flat dictionary of tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Kind: TypeAlias = Literal["tensor", "array", "scalar"]
"""What a reference in the JSON stands for: a torch tensor, a NumPy array or a NumPy scalar."""


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON with a reference in place of each tensor and array, and the tensors by their references.

    Dictionaries become lists of pairs, since their keys may be numbers or tuples.

    Raises:
        TypeError: a value is none of dict, list, tuple, tensor, array, text, number, bool and None.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, "", tensors), tensors


def unpack(value: Any, resolve: Callable[[Kind, str], Any]) -> Any:
    """The nested values of `pack`'s JSON.

    Args:
        value: the JSON.
        resolve: the value of a reference, by its kind and name.

    Raises:
        ValueError, TypeError: it is not what `pack` makes.
    """
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor" | "array" | "scalar":
            return resolve(kind, content)
        case "dict":
            return {unpack(key, resolve): unpack(item, resolve) for key, item in content}
        case "tuple":
            return tuple(unpack(item, resolve) for item in content)
        case "list":
            return [unpack(item, resolve) for item in content]
    raise ValueError(f"unknown kind {kind!r:.40}")


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    match value:
        case torch.Tensor():
            return {"tensor": _put(value.detach().cpu().contiguous().clone(), path, tensors)}
        case np.ndarray() | np.generic():
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return {kind: _put(torch.from_numpy(np.array(value, order="C")), path, tensors)}
        case Mapping():
            pairs = [(key, f"{path}/{key}", item) for key, item in value.items()]
            return {"dict": [[_pack(key, name, tensors), _pack(item, name, tensors)] for key, name, item in pairs]}
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
