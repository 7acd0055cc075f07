"""An actor that repeats batches, so that another collector can be given the same actions."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


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
