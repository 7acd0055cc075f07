"""A device that is none: its tensors are the host's, and no operation takes both, as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class MixedDevicesError(AssertionError):
    """An operation took tensors of the host and of the device."""


class Pretended(Tensor):
    """A tensor that reports that it is on `DEVICE`.

    Args:
        held: its numbers.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def numpy(self, *, force: bool = False) -> Any:
        assert force, "a GPU's tensor is no array"
        return self.held.numpy(force=True).copy()

    def tolist(self) -> Any:
        return self.held.tolist()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Pretended)
        self.held = value.held

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Factories(TorchDispatchMode):
    """Makes new tensors of the device."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Literals(TorchFunctionMode):
    """Makes tensors of Python's numbers on the host, and moves them."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            device = given.pop("device")
            return func(*args, **given).to(device)
        return func(*args, **given)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Let tensors be made on `DEVICE`."""
    fused = patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    with _Factories(), _Literals(), fused:  # type: ignore[no-untyped-call]
        yield DEVICE


_MOVES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers; its results are where its arguments are, or where they are asked for."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, Pretended)]
    # As on a GPU, numbers of no dimension may come from the host.
    strangers = [x for x in tensors if not isinstance(x, Pretended) and x.dim() > 0]
    if here and strangers and func not in _MOVES:
        raise MixedDevicesError(f"{func} takes {[list(x.shape) for x in tensors]}, some of them on the host")
    asked = kwargs.get("device")
    on_device = bool(here) if asked is None else torch.device(asked) == DEVICE
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], Pretended)
    if isinstance(args[0] if args else None, UninitializedBuffer):
        on_device = False  # it has no numbers yet, and cannot be of another class
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    plain_args, plain = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    found = func(*plain_args, **plain)
    wrappers = {id(x.held): x for x in here}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or not on_device:
            return x
        return wrappers.get(id(x)) if id(x) in wrappers else Pretended(x)

    return tree_map(wrapped, found)
