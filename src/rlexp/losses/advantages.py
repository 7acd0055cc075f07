"""Advantage estimation: torchrl's estimators over the values of the critic."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import ValueOperator
from torchrl.objectives.value import ValueEstimatorBase, VTrace
from torchrl.objectives.value.functional import vtrace_advantage_estimate

from rlexp.distributed import ALONE, Group
from rlexp.losses.value_norm import ValueNorm
from rlexp.policies.recurrent import state_values


class AdvantageEstimator(nn.Module):
    """Writes advantage and value target into a batch.

    Args:
        critic: writes ``state_value``.
        estimator: ``torchrl.objectives.value.GAE`` or `VTraceEstimator`, built without a value network: it reads the
            values that are written here, so that a recurrent critic sees its sequences and every estimator the same
            values.
        value_norm: the unit of the critic's values; None where it is that of the rewards.
        group: the learners, each of whom has a share of a batch; only `rlexp.kernels.scan` goes by it.
    """

    def __init__(
        self,
        critic: ValueOperator,
        estimator: ValueEstimatorBase,
        value_norm: ValueNorm | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self.group = group
        self.critic, self.estimator, self.value_norm = critic, estimator, value_norm

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and ``state_value``, each ``[num_envs, steps, 1]``.

        ``state_value`` keeps the critic's output of the first call on a batch, before the update, which value clipping
        refers to; with a ``value_norm`` it and ``value_target`` are in its units.
        """
        before = batch.get("state_value", None)
        value, next_value = state_values(self.critic, batch)
        scale = 1.0 if self.value_norm is None else self.value_norm.scale.to(value)
        batch["state_value"], batch["next", "state_value"] = value * scale, next_value * scale
        self.estimator(batch)
        if self.value_norm is not None:
            if before is None:
                value = value * self.value_norm.update(batch["value_target"])
            batch["value_target"] = self.value_norm(batch["value_target"])
        batch["state_value"] = value if before is None else before
        return batch


class VTraceEstimator(VTrace):
    """``torchrl.objectives.value.VTrace`` with the importance ratios of the actions in the batch.

    torchrl's draws new actions and takes the current policy's log-probability of those.
    """

    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage`` and ``value_target`` from ``state_value``, all ``[num_envs, steps, 1]``."""
        log_prob = self.actor_network.get_dist(batch.select(*self.actor_network.in_keys)).log_prob(batch["action"])
        after = batch["next"]
        advantage, target = vtrace_advantage_estimate(
            self.gamma,
            log_prob[..., None],
            batch["action_log_prob"][..., None],
            batch["state_value"],
            after["state_value"],
            after["reward"],
            after["done"],
            after["terminated"],
            rho_thresh=self.rho_thresh,
            c_thresh=self.c_thresh,
        )
        if self.average_adv:
            advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-4)
        batch["advantage"], batch["value_target"] = advantage, target
        return batch
