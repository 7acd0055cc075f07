"""What a network reads of a step. Reference: a ``TensorDictModule`` over its ``in_keys``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlexp.policies.encoders import Encoded

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """A network, and its inputs among the entries of steps.

    Encoders that only put the numbers of vectors one after another do so outside of the network, which is plain again.

    Attributes:
        keys: the entries that are read.
        network: called with the inputs.
        encoded: makes one input of the entries; None where they are the inputs.
    """

    keys: list[str]
    network: nn.Module
    encoded: Encoded | None

    @classmethod
    def of(cls, keys: Sequence[str], network: nn.Module) -> Reading:
        """How ``network`` reads the entries ``keys``."""
        if isinstance(network, Encoded) and network.concatenates:
            return cls(list(keys), network.network, network)
        return cls(list(keys), network, None)

    def inputs(self, steps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """From steps ``[n]``."""
        entries = tuple(steps[key] for key in self.keys)
        return entries if self.encoded is None else (self.encoded.features(*entries),)

    def arrays(self, observation: Array) -> tuple[Array, ...]:
        """From observations ``[n, *observation]``, or rows of several entries (`rlexp.envs.entries`)."""
        if observation.dtype.names is None:
            entries = [observation]
        else:
            entries = [np.ascontiguousarray(observation[key]) for key in self.keys]
        if self.encoded is None:
            return tuple(entries)
        if any(entry.dtype != np.float32 for entry in entries):
            return (self.encoded.features(*map(torch.from_numpy, entries)).numpy(),)
        return (np.concatenate([entry.reshape(len(entry), -1) for entry in entries], -1),)
