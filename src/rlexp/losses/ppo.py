"""Proximal policy optimisation, with the clipped and with the penalised objective (Schulman et al. 2017)."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss

from rlexp.losses.lean import LeanLoss
from rlexp.losses.terms import Terms


class LeanClipPPOLoss(LeanLoss, ClipPPOLoss):
    """``torchrl.objectives.ClipPPOLoss`` (Schulman et al. 2017, eq. 7 and 9), see `LeanLoss`."""

    def __init__(self, actor: ProbabilisticActor, critic: ValueOperator, **options: Any) -> None:
        super().__init__(actor, critic, log_explained_variance=False, **options)
        self._bind()

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """See `LeanLoss`; the bounds may have changed since the last batch."""
        super().prepare(batch)
        self._bind()

    def _bind(self) -> None:
        self.bounds = (1 - self.clip_epsilon.item(), 1 + self.clip_epsilon.item())

    def objective(self, terms: Terms, advantage: Tensor, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 7, as minimised."""
        return _surrogate(terms, advantage, *self.bounds)

    @torch.no_grad()
    def diagnostics(self, log_weights: Tensor) -> dict[str, Tensor]:
        """See `LeanLoss`."""
        ratio, (low, high) = log_weights.exp(), self.bounds
        clipped = ((ratio < low) | (ratio > high)).to(ratio.dtype).mean()
        return super().diagnostics(log_weights) | {"clip_fraction": clipped}


class LeanKLPENPPOLoss(LeanLoss, KLPENPPOLoss):
    """``torchrl.objectives.KLPENPPOLoss`` (Schulman et al. 2017, eq. 8), see `LeanLoss`.

    The penalty's weight adapts once an update, as the paper has it; torchrl adapts it with every minibatch.
    """

    def __init__(self, actor: ProbabilisticActor, critic: ValueOperator, **options: Any) -> None:
        super().__init__(actor, critic, kl=True, log_explained_variance=False, **options)

    def objective(self, terms: Terms, advantage: Tensor, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 8, as minimised."""
        assert terms.kl is not None
        parts = _surrogate(terms, advantage, -math.inf, math.inf)
        return parts | {"loss_objective": parts["loss_objective"] + self.beta * terms.kl, "kl": terms.kl.detach()}

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LeanLoss`, and the weight of the penalty."""
        return super().means(records) | {"beta": self.beta.clone()}

    def divergence(self, records: dict[str, Tensor]) -> Tensor:
        """Mean of KL(old, new) over the minibatches."""
        return records["kl"].mean()

    def adapt(self, records: dict[str, Tensor]) -> None:
        """Section 4: a larger penalty after a KL of 1.5 times its target, a smaller one below the target by as much."""
        kl = self.divergence(records)
        if kl > 1.5 * self.dtarg:
            self.beta *= self.increment
        elif kl < self.dtarg / 1.5:
            self.beta *= self.decrement


def _surrogate(terms: Terms, advantage: Tensor, low: float, high: float) -> dict[str, Tensor]:
    objective, log_weight = _ClippedSurrogate.apply(terms.log_prob, terms.old_log_prob, advantage, low, high)  # type: ignore[no-untyped-call]
    return {"loss_objective": objective, "log_weight": log_weight}


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
