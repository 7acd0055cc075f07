"""An environment of torchrl's kind, in a module that workers find from any directory."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class Bodies(EnvBase):  # type: ignore[misc, unused-ignore]
    """Reports a position and a speed, rewards with 1 and ends nothing; a batch where ``size`` is given."""

    def __init__(self, size: list[int] | None = None, **shapes: list[int]) -> None:
        super().__init__(batch_size=size or [])
        self.shapes = shapes or {"speed": [], "position": [2]}
        b = self.batch_size
        self.observation_spec = Composite({k: Unbounded((*b, *s)) for k, s in self.shapes.items()}, shape=b)
        self.action_spec = Bounded(-1, 1, (*b, 1))
        self.reward_spec = Unbounded((*b, 1))

    def _observed(self) -> dict[str, Any]:
        return {key: torch.full((*self.batch_size, *s), float(len(key))) for key, s in self.shapes.items()}

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        return TensorDict(
            {**self._observed(), "done": torch.zeros(*self.batch_size, 1, dtype=torch.bool)}, self.batch_size
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        flags = {"done": torch.zeros(*self.batch_size, 1, dtype=torch.bool)}
        return TensorDict({**self._observed(), "reward": torch.ones(*self.batch_size, 1), **flags}, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        pass
