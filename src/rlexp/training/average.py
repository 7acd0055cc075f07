"""A running average of the actor's weights, to be evaluated in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torchrl.modules import ProbabilisticActor

from rlexp.config import ConfigError, Problem


class WeightAverage:
    r"""$\bar\theta_n = \sum_{k \le n} d^{n-k} \theta_k \,/ \sum_{k \le n} d^{n-k}$ of the weights after each batch.

    An exponential moving average with bias correction (Kingma and Ba 2015, section 3). The policies of a run lie on
    a noisy path, and their average is near its middle (Polyak and Juditsky 1992).

    Args:
        actor: whose weights are averaged.
        decay: $d$.

    Attributes:
        actor: the average as an actor of its own.
        count: $n$, batches that it holds.

    Raises:
        ConfigError: the actor cannot be copied.
    """

    def __init__(self, actor: ProbabilisticActor, decay: float) -> None:
        try:
            self.actor = copy.deepcopy(actor).requires_grad_(False)
        except Exception as error:  # modules of the user's own
            message = f"the actor's network cannot be copied ({error}): use null."
            raise ConfigError([Problem("evaluation.average", message, f"{decay:g}")]) from error
        self.count = 0
        self._source, self._decay = actor, decay

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; buffers and integers are copied."""
        self.count += 1
        share = (1 - self._decay) / (1 - self._decay**self.count)
        for ours, theirs in zip(self.actor.parameters(), self._source.parameters(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, share)
            else:
                ours.copy_(theirs)
        for ours, theirs in zip(self.actor.buffers(), self._source.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """The average and its count."""
        return {"count": self.count, "actor": self.actor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.count = state["count"]
        self.actor.load_state_dict(state["actor"])
