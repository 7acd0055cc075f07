"""A PyTorch simulator with continuous actions, two entries, and ends of both kinds; each entry as torchrl has it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class Slider(EnvBase):  # type: ignore[misc]
    """A point on a line that is pushed; it terminates beyond 1, and is truncated after 13 steps.

    Args:
        num_envs: number of points.
        device: where they are.
    """

    def __init__(self, num_envs: int, device: str = "cpu") -> None:
        super().__init__(device=torch.device(device), batch_size=[num_envs])
        shape = (num_envs, 2)
        self.observation_spec = Composite(
            observation=Unbounded(shape, dtype=torch.float64), side=Unbounded((num_envs, 1)), shape=[num_envs]
        )
        self.action_spec = Bounded(-1.0, 1.0, shape)
        self.reward_spec = Unbounded((num_envs, 1))
        flag = Binary(1, shape=(num_envs, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=[num_envs])
        self.place = torch.zeros(shape, device=self.device)
        self.time = torch.zeros(num_envs, 1, device=self.device)

    def _entries(self, **entries: Tensor) -> TensorDict:
        truncated = self.time >= 13
        terminated = self.place.abs().amax(-1, keepdim=True) > 1
        flags = {"done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        observed = {"observation": self.place.double() * 3 + 1, "side": self.place[:, :1].sign()}
        return TensorDict({**observed, **flags, **entries}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.place = self.place + 0.3 * tensordict["action"]
        self.time = self.time + 1
        return self._entries(reward=1 - self.place.square().sum(-1, keepdim=True))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = torch.ones_like(self.time, dtype=torch.bool) if tensordict is None else tensordict["_reset"]
        self.place = torch.where(mask, 0.1, self.place)
        self.time = self.time.masked_fill(mask, 0)
        return self._entries()

    def _set_seed(self, seed: int | None) -> None:
        pass


class Stateless(Slider):
    """One that declares that its state is an entry of the tensordict."""

    def __init__(self, num_envs: int, device: str = "cpu") -> None:
        super().__init__(num_envs, device)
        self.state_spec = Composite(place=Unbounded((num_envs, 2)), shape=[num_envs])


class Nested(Slider):
    """One whose second entry is within another."""

    def __init__(self, num_envs: int, device: str = "cpu") -> None:
        super().__init__(num_envs, device)
        inner = Composite(side=self.observation_spec["side"], shape=[num_envs])
        self.observation_spec = Composite(
            observation=self.observation_spec["observation"], more=inner, shape=[num_envs]
        )


class Together(Slider):
    """One that resets all of its rows, whichever it is told to."""

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return super()._reset(None)


class Noisy(Slider):
    """One whose rows are pushed, and begin, by numbers of one generator."""

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        super()._reset(tensordict)
        noise = 0.01 * torch.randn(self.place.shape, generator=self.generator)
        self.place = torch.where(self.time == 0, self.place + noise, self.place)
        return self._entries()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.place = self.place + 0.01 * torch.randn(self.place.shape, generator=self.generator)
        return super()._step(tensordict)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)
