"""Advantages by a parallel scan along time. Reference: `rlexp.losses.advantages.AdvantageEstimator` over torchrl's."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives.value import GAE

from rlexp.kernels.terms import value_function
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.advantages import AdvantageEstimator, VTraceEstimator


def fast_advantage(reference: AdvantageEstimator) -> FastAdvantage:
    """The stand-in for an estimator.

    Raises:
        UnsupportedError: torchrl's estimator is another.
    """
    if type(reference) is not AdvantageEstimator:
        raise UnsupportedError(f"{type(reference).__name__} may compute more than its estimator")
    kinds = {GAE: FastGAE, VTraceEstimator: FastVTrace}
    if (kind := type(reference.estimator)) not in kinds:
        raise UnsupportedError(f"there is none for {kind.__name__}")
    return kinds[kind](reference)


class FastAdvantage(nn.Module):
    """Base of the stand-ins; a subclass's `estimate` has the formula.

    The critic is called once on each observation: the value of the state that a step leads to is that of the next
    step's start, unless the episode or the batch ends there.

    Args:
        reference: the estimator whose numbers it gives.
    """

    def __init__(self, reference: AdvantageEstimator) -> None:
        super().__init__()
        self.critic, self.gamma = reference.critic, float(reference.estimator.gamma)
        self.value_norm, self._group = reference.value_norm, reference.group
        self._value_of, self._value_after = value_function(self.critic), value_function(self.critic, alone=True)

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and, the first time, ``state_value``; ``[num_envs, steps, 1]``."""
        value, next_value = self.values(batch)
        if self.value_norm is None:
            advantage, target = self.estimate(batch, value, next_value)
        else:
            scale = self.value_norm.scale.to(value)
            advantage, target = self.estimate(batch, value * scale, next_value * scale)
            if batch.get("state_value", None) is None:
                value = value * self.value_norm.update(target)
            target = self.value_norm(target)
        if self.average:
            whole = self._group.gather(advantage)
            advantage = (advantage - whole.mean()) / whole.std().clamp_min(1e-4)
        batch.set("advantage", advantage[..., None])
        batch.set("value_target", target[..., None])
        batch.setdefault("state_value", value[..., None])
        return batch

    def values(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The values of the states that each step starts from and leads to, both ``[num_envs, steps]``."""
        after = batch["next"]
        value = self._value_of({key: batch[key].flatten(0, 1) for key in self.critic.in_keys}).view(batch.shape)
        ends = after["done"][..., 0].clone()
        ends[..., -1] = True
        next_value = value.roll(-1, -1)
        next_value[ends] = self._value_after({key: after[key][ends] for key in self.critic.in_keys})[:, 0]
        return value, next_value

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage and value target, both ``[num_envs, steps]``, like the values."""
        raise NotImplementedError


class FastGAE(FastAdvantage):
    r"""Generalised advantage estimation (Schulman et al. 2016, eq. 16). Reference: ``torchrl.objectives.value.GAE``.

    Its value target, advantage plus value, is the $\lambda$-return (Sutton and Barto 2018, eq. 12.2, cut at the end of
    the batch), so that this is TD($\lambda$) as well: TD(1) with $\lambda = 1$, TD(0) with $\lambda = 0$.
    """

    def __init__(self, reference: AdvantageEstimator) -> None:
        super().__init__(reference)
        self.lmbda, self.average = float(reference.estimator.lmbda), bool(reference.estimator.average_gae)

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage and value target, both ``[num_envs, steps]``."""
        reward, done, terminated = (batch["next", key][..., 0] for key in ("reward", "done", "terminated"))
        error = reward + self.gamma * next_value * ~terminated - value
        advantage = discounted_sums(error, self.gamma * self.lmbda * ~done)
        return advantage, advantage + value


class FastVTrace(FastAdvantage):
    r"""V-trace (Espeholt et al. 2018, eq. 1). Reference: `rlexp.losses.advantages.VTraceEstimator`.

    It corrects for the change of the policy since it acted: within an update from the second epoch on, or where the
    collector is behind. Both truncation levels are 1. Without a change it is TD(1).
    """

    def __init__(self, reference: AdvantageEstimator) -> None:
        super().__init__(reference)
        estimator = reference.estimator
        if (estimator.rho_thresh, estimator.c_thresh) != (1.0, 1.0):
            raise UnsupportedError("V-trace has other truncation levels than 1")
        self.actor, self.average = estimator.actor_network, bool(estimator.average_adv)

    def estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage and value target, both ``[num_envs, steps]``."""
        reward, done, terminated = (batch["next", key][..., 0] for key in ("reward", "done", "terminated"))
        log_prob = self.actor.get_dist(batch.select(*self.actor.in_keys)).log_prob(batch["action"])
        weight = (log_prob - batch["action_log_prob"]).exp().clamp_max(1.0)
        error = weight * (reward + self.gamma * next_value * ~terminated - value)
        target = value + discounted_sums(error, self.gamma * weight * ~done)
        # Where the episode or the batch ends, the next entry is no part of what follows.
        next_target = torch.where(done, next_value, torch.cat([target[..., 1:], next_value[..., -1:]], -1))
        return weight * (reward + self.gamma * next_target * ~terminated - value), target


def discounted_sums(x: Tensor, discount: Tensor) -> Tensor:
    r"""$y_t = x_t + d_t y_{t+1}$ along the last dimension, in as many steps as its length has bits.

    The parallel scan of Hillis and Steele (1986): after the step of width $w$, $y_t$ holds the first $2w$ terms.

    Args:
        x: ``[..., time]``.
        discount: the same shape; its last entry is not used.
    """
    total, width = x.clone(), 1
    product = discount[..., :-1]
    while width < x.shape[-1]:
        total[..., :-width] += product * total[..., width:]
        product = product[..., :-width] * product[..., width:]
        width *= 2
    return total
