"""A training step as one CUDA graph. Reference: the step itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rlexp.losses.module import Gradient


class GraphedStep:
    """A step of training that CUDA runs as one graph, not one launch per kernel (``torch.cuda.graph``).

    A graph repeats its kernels on the memory that they were captured with, and Python numbers are constants of it. So
    each minibatch is copied to the memory of the first one, and a graph is used until `invalidate`.

    Args:
        step: from a minibatch to what it records; minibatches are of one shape, and no result is waited for.
    """

    def __init__(self, step: Gradient) -> None:
        self._step = step
        self._warm_up = 3  # steps, as the documentation of torch.cuda.graph has it
        self._graph: torch.cuda.CUDAGraph | None = None
        self._minibatch: dict[str, Tensor] = {}
        self._record: dict[str, Tensor] = {}

    def invalidate(self) -> None:
        """Capture the graph anew at the next step: a constant of it, such as the learning rate, has changed."""
        self._graph = None

    def __call__(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make a step, and return what it recorded."""
        if self._warm_up:
            self._warm_up -= 1
            return self._aside(minibatch)
        if not self._minibatch:
            self._minibatch = {name: value.clone() for name, value in minibatch.items()}
        for name, value in minibatch.items():
            self._minibatch[name].copy_(value)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._record = self._step(self._minibatch)
        self._graph.replay()
        return {name: value.clone() for name, value in self._record.items()}

    def _aside(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step as it is, on a stream of its own: libraries set themselves up, and capture allows for none of it."""
        stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            record = self._step(minibatch)
        main.wait_stream(stream)
        return record
