"""Advantage estimators: torchrl's numbers, from one evaluation of the critic and a parallel scan along time."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, ValueOperator

from rlexp.losses.returns import discounted_sums
from rlexp.losses.terms import value_function


class AdvantageEstimator(nn.Module):
    """Base of the estimators: a subclass's `estimate` has the formula.

    Args:
        critic: reads ``observation``, writes ``state_value``.
        gamma: discount.
        average: normalise the advantage over the batch.
    """

    def __init__(self, critic: ValueOperator, gamma: float, *, average: bool) -> None:
        super().__init__()
        self.critic, self.gamma, self.average = critic, gamma, average
        self._value_of, self._value_after = value_function(critic), value_function(critic, alone=True)

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and ``state_value``, each ``[num_envs, steps, 1]``.

        ``state_value`` stays what the first call wrote: the values before the update, which value clipping refers to.
        """
        value, next_value = self.values(batch)
        advantage, target = self.estimate(batch, value, next_value)
        if self.average:
            advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-4)
        batch.set("advantage", advantage[..., None])
        batch.set("value_target", target[..., None])
        batch.setdefault("state_value", value[..., None])
        return batch

    def values(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The critic's value of where each step starts and of where it leads, both ``[num_envs, steps]``."""
        after = batch["next"]
        value = self._value_of({key: batch[key].flatten(0, 1) for key in self.critic.in_keys}).view(batch.shape)
        # The value of where a step led is that of where the next one starts, unless the episode or the batch ends.
        ends = after["done"][..., 0].clone()
        ends[..., -1] = True
        next_value = value.roll(-1, -1)
        next_value[ends] = self._value_after({key: after[key][ends] for key in self.critic.in_keys})[:, 0]
        return value, next_value

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage and value target, both ``[num_envs, steps]``, like the values."""
        raise NotImplementedError


class GeneralizedAdvantage(AdvantageEstimator):
    r"""Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    The numbers of ``torchrl.objectives.value.GAE``. Its value target, advantage plus value, is the $\lambda$-return
    (Sutton and Barto 2018, eq. 12.2, cut at the end of the batch), so that this is TD($\lambda$) as well: TD(1) with
    $\lambda = 1$, TD(0) with $\lambda = 0$.

    Args:
        lmbda: $\lambda$.
    """

    def __init__(self, critic: ValueOperator, gamma: float, lmbda: float, *, average: bool) -> None:
        super().__init__(critic, gamma, average=average)
        self.lmbda = lmbda

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """See `AdvantageEstimator`."""
        reward, done, terminated = (batch["next", key][..., 0] for key in ("reward", "done", "terminated"))
        error = reward + self.gamma * next_value * ~terminated - value
        advantage = discounted_sums(error, self.gamma * self.lmbda * ~done)
        return advantage, advantage + value


class VTrace(AdvantageEstimator):
    r"""V-trace (Espeholt et al. 2018, eq. 1), the numbers of ``torchrl.objectives.value.VTrace``.

    Corrects for what the policy has changed since it acted: within an update from the second epoch on, or where
    behaviour lags behind. Both truncation levels are 1. Without a change it is TD(1).

    Args:
        actor: the policy that is trained; the batch holds the log-probabilities of the one that acted.
    """

    def __init__(self, critic: ValueOperator, actor: ProbabilisticActor, gamma: float, *, average: bool) -> None:
        super().__init__(critic, gamma, average=average)
        self.actor = actor

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """See `AdvantageEstimator`."""
        reward, done, terminated = (batch["next", key][..., 0] for key in ("reward", "done", "terminated"))
        log_prob = self.actor.get_dist(batch.select(*self.actor.in_keys)).log_prob(batch["action"])
        weight = (log_prob - batch["action_log_prob"]).exp().clamp_max(1.0)
        error = weight * (reward + self.gamma * next_value * ~terminated - value)
        target = value + discounted_sums(error, self.gamma * weight * ~done)
        # Where the episode or the batch ends, the next entry is no part of what follows.
        next_target = torch.where(done, next_value, torch.cat([target[..., 1:], next_value[..., -1:]], -1))
        return weight * (reward + self.gamma * next_target * ~terminated - value), target
