"""The interface between the trainer and an update rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tensordict import TensorDictBase
from torch import nn


class Learner(Protocol):
    """Improves the networks of an agent in place, one batch at a time.

    Attributes:
        weights: all that is trained, as one vector ``[weights]``.
    """

    weights: nn.Parameter

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """Improve the policy on one batch.

        Args:
            batch: transitions ``[num_envs, steps]`` from the policy that acted; may be changed in place.
            progress: the share of the run that is over, from 0 to 1.

        Returns:
            Metrics of the update, by their names in ``metrics.jsonl``, ``train/lr`` among them. The trainer checks that
            they are finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything but the networks that a resumed run needs: tensors, numbers, strings and containers of them."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""

    def warm_start(self, state: Mapping[str, Any]) -> None:
        """Take the running statistics, and nothing else, from the `state_dict` of another run's learner."""

    def begin_episodes(self) -> None:
        """Every episode begins afresh: drop what refers to the current ones."""
