"""PPO with an adaptive KL penalty."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torchrl.objectives import KLPENPPOLoss

from rlexp.losses.surrogates import SurrogateLoss


class KLPenaltyLoss(SurrogateLoss, KLPENPPOLoss):
    """``torchrl.objectives.KLPENPPOLoss`` (Schulman et al. 2017, eq. 8), its penalty adapted once per update.

    The paper adapts the weight of the penalty after each update (section 4); torchrl does so with every minibatch. It
    also evaluates the policy twice, for the surrogate and for the penalty: at the bounds of a standard deviation, where
    a gradient's sign decides whether it passes, it is their sum that counts.

    Args:
        args, kwargs: as for torchrl's class; ``increment`` is the factor of ``beta`` after an update whose KL is above
            1.5 ``dtarg``, ``decrement`` that after one whose KL is below ``dtarg`` / 1.5.
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses and diagnostics of a minibatch, as torchrl's, with ``beta`` beside them."""
        steps = tensordict.clone(False)
        old = self.actor_network.build_dist_from_params(tensordict)
        advantage = self._maybe_normalize_advantage(steps["advantage"], steps, update_norm=False)
        log_weight, dist, kl_approx, _ = self._log_weight(steps, adv_shape=advantage.shape[:-1])
        kl = divergence(old, dist)[..., None]
        loss = self.beta * kl - log_weight.exp() * advantage
        out = {"loss_objective": loss.mean(), "kl": kl.detach().mean(), "kl_approx": kl_approx.detach().mean()}
        return TensorDict(out | self.entropy_and_critic(dist, steps) | {"beta": self.beta.clone()})

    def end_update(self, kl: Tensor) -> None:
        """Raise or lower ``beta`` by the KL of the last epoch, in nats."""
        if kl > 1.5 * self.dtarg:
            self.beta *= self.increment
        elif kl < self.dtarg / 1.5:
            self.beta *= self.decrement


def divergence(old: Distribution, new: Distribution) -> Tensor:
    """KL(old, new) ``[...]``; without a closed form it is estimated from one sample a step, as in torchrl."""
    try:
        return kl_divergence(old, new)
    except NotImplementedError:
        sample = old.sample()
        return old.log_prob(sample) - new.log_prob(sample)
