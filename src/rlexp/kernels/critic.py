"""The gradient of a critic's loss, written out for plain MLPs. Reference: autograd's.

Update rules that train the critic apart take most of their time for its passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchrl.modules import ValueOperator

from rlexp.kernels.losses import DISTANCES
from rlexp.kernels.mlp import MLPGradient, MLPLayers
from rlexp.kernels.reading import Reading
from rlexp.kernels.terms import is_plain
from rlexp.kernels.unsupported import UnsupportedError


class WrittenOutCriticGradient:
    """The gradient of the mean distance between values and targets.

    Args:
        critic: its weights, and their ``grad``, must stay where they are in memory.
        distance: ``l1``, ``l2`` or ``smooth_l1``.

    Raises:
        UnsupportedError: the critic is no plain MLP.
    """

    def __init__(self, critic: ValueOperator, distance: str) -> None:
        if not is_plain(critic):
            raise UnsupportedError("the critic is more than its network")
        self._reads = Reading.of(critic.in_keys, critic.module)
        layers = MLPLayers.of(self._reads.network)
        if layers is None:
            raise UnsupportedError("the critic is not an MLP of linear layers with Tanh or ReLU")
        if not layers.trained:
            raise UnsupportedError("weights are frozen")
        self._layers, self._distance = MLPGradient(layers), DISTANCES[distance]

    @torch.no_grad()
    def __call__(self, minibatch: Mapping[str, Tensor]) -> Tensor:
        """Overwrite the critic's gradient, and return the loss of a minibatch with ``value_target`` ``[n, 1]``."""
        value, hidden = self._layers.forward(*self._reads.inputs(minibatch))
        error = value - minibatch["value_target"]
        self._layers.backward(hidden, self._distance.slope(error) / len(error))
        return self._distance.of(error).mean()
