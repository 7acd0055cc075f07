"""Advantage estimation: torchrl's estimators over the values of the critic."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives.value import ValueEstimatorBase

from rlexp.policies.recurrent import state_values


class AdvantageEstimator(nn.Module):
    """Writes advantage and value target into a batch.

    Args:
        critic: writes ``state_value``.
        estimator: ``GAE`` or ``VTrace`` of torchrl, built without a value network: it reads the values that are written
            here, so that a recurrent critic sees its sequences and every estimator the same values.
    """

    def __init__(self, critic: ValueOperator, estimator: ValueEstimatorBase) -> None:
        super().__init__()
        self.critic, self.estimator = critic, estimator

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and ``state_value``, each ``[num_envs, steps, 1]``.

        ``state_value`` keeps the values of the first call on a batch, those before the update, which value clipping
        refers to.
        """
        before = batch.get("state_value", None)
        batch["state_value"], batch["next", "state_value"] = state_values(self.critic, batch)
        self.estimator(batch)
        if before is not None:
            batch["state_value"] = before
        return batch
