"""What a CUDA graph does, on the CPU: capture runs nothing, and a replay repeats each operation on the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class Graph:
    """Operations with the very tensors that they were captured with."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat them; what an operation once gave memory to is written there again."""
        for operation, arguments, options, captured in self.calls:
            given = {memory(t) for t in tensors((arguments, options))}
            for old, new in zip(tensors(captured), tensors(operation(*arguments, **options)), strict=True):
                if memory(old) not in given:
                    old.copy_(new)


class _Capture(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        assert "_local_scalar_dense" not in str(operation), "the host waits for a result, which capture does not allow"
        given = tensors((arguments, options))
        if operation._schema.is_mutable:
            for tensor in given:
                if memory(tensor) not in self._own | self._before.keys():
                    storage = tensor.untyped_storage()
                    self._before[memory(tensor)] = storage, storage.clone()
        result = operation(*arguments, **options)
        self._own |= {memory(t) for t in tensors(result)} - {memory(t) for t in given}
        self._graph.calls.append((operation, arguments, options, result))
        return result

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)


@contextmanager
def _captured(graph: Graph) -> Iterator[None]:
    capture = _Capture(graph)
    with capture:
        yield
    capture.undo()


def emulate(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let ``torch.cuda`` capture CPU tensors; the graphs that are made, in order."""
    made: list[Graph] = []

    def new() -> Graph:
        made.append(Graph())
        return made[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "CUDAGraph": new,
        "graph": _captured,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


def tensors(tree: Any) -> list[Tensor]:
    """All in it."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    """Which memory a tensor looks into."""
    return int(tensor.untyped_storage()._cdata)
