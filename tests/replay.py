"""Environments that begin alike and an actor that repeats batches, so that two collectors can be compared."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TransformedEnv

from rlexp.envs.normalization import init_normalization
from rlexp.experiment import ExperimentConfig


class Replay(TensorDictModuleBase):  # type: ignore[misc]
    """Plays a batch's actions again, with everything else that the actor writes."""

    def __init__(self, actor: TensorDictModuleBase, batches: list[TensorDictBase]) -> None:
        super().__init__()
        self.in_keys, self.out_keys = actor.in_keys, actor.out_keys
        self.written = torch.cat(batches, 1).select(*actor.out_keys)
        self.t = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict.update(self.written[:, self.t])
        self.t += 1
        return tensordict


def seeded(config: ExperimentConfig) -> TransformedEnv:
    """An environment, and torch, that begin alike each time."""
    torch.manual_seed(0)
    env = config.env.build(config.env.num_envs)
    env.set_seed(3)
    init_normalization(env, 50)
    return env
