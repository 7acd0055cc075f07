"""What the collectors of this package share: an environment, a policy, and batches of so many steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector
from torchrl.envs import TransformedEnv


class BatchCollector(BaseCollector):
    """Batches from one environment for ever.

    Args:
        env: the simulators, with transforms.
        actor: the policy.
        steps_per_batch: agent steps of one batch, all simulators together.
        device: where the batches go.
    """

    def __init__(
        self, env: TransformedEnv, actor: TensorDictModuleBase, steps_per_batch: int, device: torch.device
    ) -> None:
        super().__init__()
        self.total_frames, self.requested_frames_per_batch = -1, steps_per_batch
        self.env, self.actor, self.device = env, actor, device
        self._steps = steps_per_batch // env.batch_size.numel()

    def iterator(self) -> Iterator[TensorDictBase]:
        """Batches for ever."""
        while True:
            yield self.rollout()

    def rollout(self) -> TensorDictBase:
        """The next batch ``[num_envs, steps]``, from the policy as it is now."""
        raise NotImplementedError

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """Close the environment."""
        if close_env and not self.env.is_closed:
            self.env.close(raise_if_closed=raise_on_error)

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the simulators, each at its next reset."""
        next_seed: int = self.env.set_seed(seed, static_seed=static_seed)
        return next_seed
