"""A running average of the actor's weights, to be evaluated in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torchrl.modules import ProbabilisticActor


class WeightAverage:
    r"""$\bar\theta_n = \sum_{k \le n} d^{n-k} \theta_k \,/ \sum_{k \le n} d^{n-k}$ of the weights after each batch.

    An exponential average without the share of its start (Kingma and Ba 2015, section 3). The policies of a run lie on
    a noisy path, and their average is near its middle (Polyak and Juditsky 1992).

    Args:
        actor: whose weights are averaged.
        decay: $d$.

    Attributes:
        actor: the average as an actor of its own.
        count: $n$, batches that it holds.
    """

    def __init__(self, actor: ProbabilisticActor, decay: float) -> None:
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        self.count = 0
        self._source, self._decay = actor, decay

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; what is no parameter is copied."""
        self.count += 1
        share = (1 - self._decay) / (1 - self._decay**self.count)
        for ours, theirs in zip(self.actor.parameters(), self._source.parameters(), strict=True):
            ours.lerp_(theirs, share)
        for ours, theirs in zip(self.actor.buffers(), self._source.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """The average and its count."""
        return {"count": self.count, "actor": self.actor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.count = state["count"]
        self.actor.load_state_dict(state["actor"])
