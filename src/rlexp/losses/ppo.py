"""Proximal policy optimisation's advantages and loss: torchrl's numbers, without its cost per call.

At minibatches of some hundred steps and networks of some thousand weights, neither products nor sums take the time but
the calls around them. Both modules compute what torchrl's do, and are tested to give the same numbers and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from rlexp.losses.returns import discounted_sums
from rlexp.losses.terms import policy_terms, value_function


class GeneralizedAdvantage(nn.Module):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), the numbers of ``torchrl.objectives.value.GAE``.

    Args:
        critic: reads ``observation``, writes ``state_value``.
        gamma: discount.
        lmbda: GAE's lambda.
        average: normalise the advantage over the batch.
    """

    def __init__(self, critic: ValueOperator, gamma: float, lmbda: float, *, average: bool) -> None:
        super().__init__()
        self.critic, self.gamma, self.lmbda, self.average = critic, gamma, lmbda, average
        self._value_of, self._value_after = value_function(critic), value_function(critic, alone=True)

    @torch.no_grad()
    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and ``state_value``, each ``[num_envs, steps, 1]``."""
        after = batch["next"]
        reward, done, terminated = (after[key][..., 0] for key in ("reward", "done", "terminated"))
        value = self._value_of({key: batch[key].flatten(0, 1) for key in self.critic.in_keys}).view(batch.shape)
        # The value of where a step led is that of where the next one starts, unless the episode or the batch ends.
        ends = done.clone()
        ends[..., -1] = True
        next_value = value.roll(-1, -1)
        next_value[ends] = self._value_after({key: after[key][ends] for key in self.critic.in_keys})[:, 0]
        error = reward + self.gamma * next_value * ~terminated - value
        advantage = discounted_sums(error, self.gamma * self.lmbda * ~done)
        target = advantage + value
        if self.average:
            advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(1e-4)
        for key, entry in (("advantage", advantage), ("value_target", target), ("state_value", value)):
            batch.set(key, entry[..., None])
        return batch


class LeanClipPPOLoss(ClipPPOLoss):
    """``torchrl.objectives.ClipPPOLoss`` (Schulman et al. 2017, eq. 7 and 9) computed on plain tensors.

    What it needs of the networks comes from `rlexp.losses.terms`. The diagnostics that torchrl computes with every
    minibatch are computed once, by `diagnostics`.

    Args:
        actor, critic: the networks, which stay plain modules.
        options: torchrl's own.
    """

    def __init__(self, actor: ProbabilisticActor, critic: ValueOperator, **options: Any) -> None:
        # Functional copies of the networks would double the time of a step.
        super().__init__(actor, critic, functional=False, log_explained_variance=False, **options)
        self._policy = policy_terms(actor)
        self._value_of = value_function(critic)
        self.bounds = (1 - self.clip_epsilon.item(), 1 + self.clip_epsilon.item())

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""
        keys = [*self._policy.step_keys, *self.critic_network.in_keys, "advantage", "value_target"]
        return list(dict.fromkeys(keys))

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write what `losses` needs of each step and the update does not change, once for a batch."""
        self._policy.prepare(batch)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch as torchrl returns them, diagnostics included."""
        prepared = tensordict.copy()
        self.prepare(prepared)
        losses = self.losses({key: prepared[key] for key in self.step_keys})
        diagnostics = self.diagnostics(losses.pop("log_weight")[None])
        return TensorDict({**losses, **diagnostics})

    def losses(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a minibatch.

        Args:
            minibatch: the entries `step_keys` of a prepared batch, ``[n, ...]``.

        Returns:
            Scalars ``loss_objective``, ``loss_critic`` and, with an entropy bonus, ``loss_entropy``, to be summed;
            besides them ``entropy`` and the log of the importance ratios, ``log_weight`` ``[n]``, both detached.
        """
        advantage = self.normalized(minibatch["advantage"][..., 0])
        log_prob, old_log_prob, entropy = self._policy(minibatch, entropy=self.entropy_bonus)
        objective, log_weight = _ClippedSurrogate.apply(log_prob, old_log_prob, advantage, *self.bounds)  # type: ignore[no-untyped-call]
        error = _DISTANCES[self.loss_critic_type](self._value_of(minibatch), minibatch["value_target"])
        losses = {"loss_objective": objective, "loss_critic": self.critic_coeff * error}
        if entropy is not None:
            losses |= {"loss_entropy": -self.entropy_coeff * entropy, "entropy": entropy.detach()}
        return losses | {"log_weight": log_weight}

    def normalized(self, advantage: Tensor) -> Tensor:
        """The advantage ``[n]`` as the objective sees it."""
        if not self.normalize_advantage:
            return advantage
        centred = advantage - advantage.mean()
        return centred / centred.square().sum().div(len(centred) - 1).sqrt().clamp_min(1e-4)

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over minibatches, the diagnostics of the ratios among them."""
        plain = {name: record.mean() for name, record in records.items() if name != "log_weight"}
        return plain | self.diagnostics(records["log_weight"])

    @torch.no_grad()
    def diagnostics(self, log_weights: Tensor) -> dict[str, Tensor]:
        """Means over minibatches of what torchrl logs about the importance ratios.

        Args:
            log_weights: ``[minibatches, n]``.
        """
        ess = (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp() / log_weights.shape[-1]
        ratio, (low, high) = log_weights.exp(), self.bounds
        return {
            "kl_approx": -log_weights.mean(),
            "clip_fraction": ((ratio < low) | (ratio > high)).to(ratio.dtype).mean(),
            "ESS": ess.mean(),
        }


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The negative of eq. 7's mean, the log of the ratios, and the derivative by ``log_prob``, both ``[n]``."""
    log_weight = log_prob - old_log_prob
    ratio = log_weight.exp()
    gain, clipped = ratio * advantage, ratio.clamp(low, high) * advantage
    return -torch.minimum(gain, clipped).mean(), log_weight, gain.mul_(gain <= clipped).div_(-len(gain))


class _ClippedSurrogate(torch.autograd.Function):
    """The negative of eq. 7's mean, and the log of the ratios ``[n]``, which carries no gradient; one node."""

    @staticmethod
    def forward(
        ctx: Any, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        objective, log_weight, slope = clipped_surrogate(log_prob, old_log_prob, advantage, low, high)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(log_weight)
        return objective, log_weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grad_outputs[0] * slope, None, None, None, None


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}
