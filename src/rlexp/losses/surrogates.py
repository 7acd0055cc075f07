"""Variants of PPO's surrogate that torchrl has not."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss, PPOLoss


class SurrogateLoss(PPOLoss):
    """Base of the losses whose surrogate torchrl has not, or computes differently."""

    def entropy_and_critic(self, dist: Distribution, steps: TensorDictBase) -> dict[str, Tensor]:
        """The parts beside the surrogate, as ``PPOLoss`` has them, with the policy ``dist`` at ``steps``."""
        out: dict[str, Tensor] = {}
        if self.entropy_bonus:
            entropy = self._get_entropy(dist, adv_shape=steps.batch_size)
            out |= {"entropy": entropy.detach().mean(), "loss_entropy": self._weighted_loss_entropy(entropy).mean()}
        if self._has_critic:
            loss_critic, clip_fraction, _ = self.loss_critic(steps)
            out["loss_critic"] = loss_critic.mean()
            if clip_fraction is not None:
                out["value_clip_fraction"] = clip_fraction
        return out


class SPOLoss(SurrogateLoss):
    r"""Simple policy optimisation (Xie et al. 2024): $-\mathbb{E}[r A - |A| (r - 1)^2 / (2 \epsilon)]$.

    Where PPO's gradient is 0 beyond the clipping bound, this one leads back to the ratio
    $1 + \epsilon\,\mathrm{sign} A$.

    Args:
        args, kwargs: as for torchrl's ``PPOLoss``.
        epsilon: distance from 1 of the best ratio.
    """

    epsilon: Tensor

    def __init__(self, *args: Any, epsilon: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("epsilon", torch.tensor(epsilon))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses and diagnostics of a minibatch ``[n]``, as ``PPOLoss``."""
        steps = tensordict.clone(False)
        advantage = self._maybe_normalize_advantage(steps["advantage"], steps, update_norm=False)
        log_weight, dist, kl_approx, _ = self._log_weight(steps, adv_shape=advantage.shape[:-1])
        ratio = log_weight.exp()
        gain = ratio * advantage - advantage.abs() * (ratio - 1).square() / (2 * self.epsilon)
        out = {"loss_objective": -gain.mean(), "kl_approx": kl_approx.detach().mean()}
        return TensorDict(out | self.entropy_and_critic(dist, steps))


class RPOLoss(ClipPPOLoss):
    r"""Robust policy optimisation (Rahman and Xue 2022): PPO's clipped surrogate with noise on a Gaussian's mean.

    In the update, and not where it acts, the policy's mean is $\mu + z$ with $z \sim \mathcal{U}(-\alpha, \alpha)$
    drawn anew for each step of a minibatch and each action. It keeps the standard deviation from falling.

    Args:
        actor_network: a Gaussian actor, squashed or not.
        args, kwargs: as for torchrl's ``ClipPPOLoss``.
        alpha: bound of that noise.
    """

    def __init__(self, actor_network: ProbabilisticActor, *args: Any, alpha: float, **kwargs: Any) -> None:
        *network, sampler = actor_network.module
        disturbance = TensorDictModule(_Disturbance(alpha), in_keys=["loc"], out_keys=["loc"])
        super().__init__(ProbabilisticTensorDictSequential(*network, disturbance, sampler), *args, **kwargs)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """As torchrl's, but ``kl_approx`` and ``ESS``, which `rlexp.losses.module.Loss` gives of the policy itself."""
        out: TensorDictBase = super().forward(tensordict)
        return out.exclude("kl_approx", "ESS")


class _Disturbance(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, loc: Tensor) -> Tensor:
        return loc + self.alpha * (2 * torch.rand_like(loc) - 1)
