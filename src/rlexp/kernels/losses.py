"""The shipped losses on plain tensors. Reference: `rlexp.losses.module.Loss` over torchrl's loss modules.

At minibatches of some hundred steps and networks of some thousand weights, torchrl's modules spend most of their time
on tensordicts and on diagnostics per minibatch. Here the diagnostics are computed once per update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchrl.objectives import A2CLoss, ClipPPOLoss, LossModule

from rlexp.kernels.mlp import hooked
from rlexp.kernels.terms import Terms, policy_terms, value_function
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.kl_penalty import KLPenaltyLoss
from rlexp.losses.module import Loss, Minibatch, named
from rlexp.losses.surrogates import SPOLoss
from rlexp.policies import ActorCritic


class Distance(NamedTuple):
    """A distance between value and target, of their difference.

    Attributes:
        of: each error's distance.
        slope: its derivative with respect to the error.
    """

    of: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


DISTANCES = {
    "l1": Distance(torch.abs, torch.sign),
    "l2": Distance(torch.square, lambda error: 2 * error),
    "smooth_l1": Distance(
        lambda error: F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none"),
        lambda error: error.clamp(-1, 1),
    ),
}


_ENTRIES = {
    **{"action": "action", "sample_log_prob": "action_log_prob", "advantage": "advantage"},
    **{"value_target": "value_target", "value": "state_value"},
}
"""What torchrl's losses read, by their names for it."""


def fast_loss(loss: Loss, networks: ActorCritic) -> FastLoss:
    """The stand-in for a loss; it reads the settings of the torchrl module, whose coefficients stay the live ones.

    Raises:
        UnsupportedError: the module is another, or has settings that are not supported here.
    """
    if type(loss) is not Loss:
        raise UnsupportedError(f"{type(loss).__name__} may compute more than its module")
    module = loss.module
    kinds: dict[type[LossModule], type[FastLoss]] = {
        ClipPPOLoss: FastClipPPO,
        KLPenaltyLoss: FastKLPenalty,
        SPOLoss: FastSPO,
        A2CLoss: FastA2C,
    }
    name = type(module).__name__
    if type(module) not in kinds:
        raise UnsupportedError(f"there is none for {name}")
    if hooked(loss) or hooked(module):
        raise UnsupportedError(f"{name} has hooks")
    if module.actor_network is not networks.actor or module.critic_network is not networks.critic:
        raise UnsupportedError(f"{name} is of other networks than the policy's")
    if any(getattr(module.tensor_keys, key) != entry for key, entry in _ENTRIES.items()):
        raise UnsupportedError(f"{name} reads entries of other names")
    expected: dict[str, Any] = {
        "functional": False,
        "reduction": "mean",
        "separate_losses": False,
        "samples_mc_entropy": 1,
        "advantage_norm": None,
        "normalize_advantage_exclude_dims": (),
        "max_importance_ratio": None,
        "_entropy_coeff_map": None,
    }
    for setting, value in expected.items():
        if (found := getattr(module, setting, value)) != value:
            raise UnsupportedError(f"{name} has {setting}={found}")
    if module.loss_critic_type not in DISTANCES:
        raise UnsupportedError(f"{name} has another critic loss")
    if "clip_epsilon_low" in loss.coefficients:
        raise UnsupportedError(f"{name} clips the ratio by two bounds")
    if any(coefficient.numel() != 1 for coefficient in loss.coefficients.values()):
        raise UnsupportedError(f"{name} has several coefficients of one kind")
    return kinds[type(module)](loss, networks)


class FastLoss:
    """Base of the stand-ins; a subclass's `objective` has the formula.

    Args:
        reference: the loss whose numbers it gives.
        networks: what it trains.
        kl: the objective needs the KL from the policy that acted.
    """

    def __init__(self, reference: Loss, networks: ActorCritic, *, kl: bool = False) -> None:
        module = reference.module
        self.reference, self.module = reference, module
        self.normalize_advantage = reference.normalize_advantage or getattr(module, "normalize_advantage", False)
        self.entropy_bonus: bool = module.entropy_bonus
        # 0 and None are no bound, as in torchrl.
        self.clip_value: float | None = None if not module.clip_value else float(module.clip_value)
        self.distance = DISTANCES[module.loss_critic_type]
        self.trains_critic: bool = module.critic_coeff is not None and module.critic_coeff.item() > 0
        self.policy = policy_terms(networks.actor, kl=kl)
        self._value_of = value_function(networks.critic)
        self._critic_keys = list(networks.critic.in_keys)

    @property
    def keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""
        keys = [*self.policy.keys, "advantage"]
        if self.trains_critic:
            keys += [*self._critic_keys, "value_target"]
        if self.trains_critic and self.clip_value is not None:
            keys.append("state_value")
        return list(dict.fromkeys(keys))

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write what depends on the actions alone into a batch ``[num_envs, steps]``."""
        self.policy.prepare(batch)

    def losses(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """Scalars ``loss_*``, diagnostics, and the log importance ratios ``log_weight`` ``[n]``."""
        advantage = self.advantage(minibatch)
        terms = self.policy(minibatch, entropy=self.entropy_bonus)
        losses = self.objective(terms, advantage, minibatch)
        if self.trains_critic:
            losses |= self._critic(minibatch)
        if terms.entropy is not None:
            losses |= {"loss_entropy": -self.module.entropy_coeff * terms.entropy, "entropy": terms.entropy.detach()}
        return losses

    def advantage(self, minibatch: Minibatch) -> Tensor:
        """The advantage ``[n]`` as the objective uses it."""
        advantage = minibatch["advantage"][..., 0]
        if not self.normalize_advantage:
            return advantage
        centred = advantage - advantage.mean()
        return centred / centred.square().sum().div(len(centred) - 1).sqrt().clamp_min(1e-4)

    def objective(self, terms: Terms, advantage: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        """``loss_objective`` and ``log_weight``, from the advantage ``[n]``."""
        raise NotImplementedError

    def _critic(self, minibatch: Minibatch) -> dict[str, Tensor]:
        value, target = self._value_of(minibatch), minibatch["value_target"]
        distance = self.distance.of
        if self.clip_value is None:
            return {"loss_critic": self.module.critic_coeff * distance(value - target).mean()}
        change = value - minibatch["state_value"]
        clipped = change.clamp(-self.clip_value, self.clip_value)
        near = minibatch["state_value"] + clipped
        worse = torch.maximum(distance(value - target), distance(near - target))
        fraction = (change.detach() != clipped.detach()).to(value.dtype).mean()
        return {"loss_critic": self.module.critic_coeff * worse.mean(), "value_clip_fraction": fraction}

    def metrics(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over minibatches, the diagnostics of the importance ratios among them."""
        means = {name: record.mean() for name, record in records.items() if name != "log_weight"}
        return named(means | self.diagnostics(records["log_weight"]))

    def kl(self, records: dict[str, Tensor]) -> Tensor:
        """Mean of r - 1 - log r with the ratio r (Schulman 2020, k3)."""
        log_weight = records["log_weight"]
        return (log_weight.expm1() - log_weight).mean()

    def end_update(self, records: dict[str, Tensor]) -> None:
        """None of the coefficients follows the KL."""

    @torch.no_grad()
    def diagnostics(self, log_weights: Tensor) -> dict[str, Tensor]:
        """Means over minibatches of what torchrl logs about the log importance ratios ``[minibatches, n]``."""
        ess = (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp() / log_weights.shape[-1]
        return {"kl_approx": -log_weights.mean(), "ESS": ess.mean()}


class FastClipPPO(FastLoss):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7 and 9). Reference: ``torchrl.objectives.ClipPPOLoss``.

    Attributes:
        bounds: lowest and highest ratio that is not clipped.
    """

    bounds: tuple[float, float]

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """As `FastLoss`; the bounds may have changed since the last batch."""
        super().prepare(batch)
        epsilon = self.module.clip_epsilon.item()
        self.bounds = (1 - epsilon, 1 + epsilon)

    def objective(self, terms: Terms, advantage: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        """The negative of eq. 7."""
        return _surrogate(terms, advantage, *self.bounds)

    def surrogate(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The objective, the log ratios and its derivative by ``log_prob``, both ``[n]``."""
        return clipped_surrogate(log_prob, old_log_prob, advantage, *self.bounds)

    @torch.no_grad()
    def diagnostics(self, log_weights: Tensor) -> dict[str, Tensor]:
        """As `FastLoss`, and mean, largest and share of clipped ratios."""
        ratio, (low, high) = log_weights.exp(), self.bounds
        clipped = ((ratio < low) | (ratio > high)).to(ratio.dtype).mean()
        ratios = {"clip_fraction": clipped, "mean_ratio": ratio.mean(), "max_ratio": ratio.amax(-1).mean()}
        return super().diagnostics(log_weights) | ratios


class FastSPO(FastLoss):
    """The surrogate with a squared penalty on the ratio. Reference: `rlexp.losses.surrogates.SPOLoss`."""

    def objective(self, terms: Terms, advantage: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        """The negative of the penalised surrogate's mean."""
        log_weight = terms.log_prob - terms.old_log_prob
        excess = log_weight.expm1()
        gain = (excess + 1) * advantage - advantage.abs() * excess.square() / (2 * self.module.epsilon)
        return {"loss_objective": -gain.mean(), "log_weight": log_weight.detach()}

    def surrogate(self, log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `FastClipPPO.surrogate`."""
        log_weight = log_prob - old_log_prob
        excess, weight = log_weight.expm1(), advantage.abs() / self.module.epsilon
        gain = (excess + 1) * advantage - 0.5 * weight * excess.square()
        slope = (excess + 1) * (advantage - weight * excess)
        return -gain.mean(), log_weight, slope.div_(-len(gain))


class FastKLPenalty(FastLoss):
    """PPO's penalised surrogate (Schulman et al. 2017, eq. 8). Reference: `rlexp.losses.kl_penalty.KLPenaltyLoss`."""

    def __init__(self, reference: Loss, networks: ActorCritic) -> None:
        super().__init__(reference, networks, kl=True)

    def objective(self, terms: Terms, advantage: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        """The negative of eq. 8."""
        assert terms.kl is not None
        parts = _surrogate(terms, advantage, -math.inf, math.inf)
        penalty = self.module.beta * terms.kl
        return parts | {"loss_objective": parts["loss_objective"] + penalty, "kl": terms.kl.detach()}

    def metrics(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `FastLoss`, and the weight of the penalty."""
        return super().metrics(records) | named({"beta": self.module.beta.clone()})

    def kl(self, records: dict[str, Tensor]) -> Tensor:
        """Mean over the minibatches of an epoch."""
        return records["kl"].mean()

    def end_update(self, records: dict[str, Tensor]) -> None:
        """Adapt the weight of the penalty (section 4)."""
        self.reference.end_update(records)


class FastA2C(FastLoss):
    """The policy gradient without importance ratios (Mnih et al. 2016). Reference: ``torchrl.objectives.A2CLoss``."""

    @property
    def keys(self) -> list[str]:
        """As `FastLoss`, and the log-probability of the policy that acted."""
        return list(dict.fromkeys([*super().keys, "action_log_prob"]))

    def objective(self, terms: Terms, advantage: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        """The negative of log-probability times advantage."""
        # The terms may lack a share that cancels in the ratio; here it is part of the value, not of the gradient.
        log_weight = terms.log_prob - terms.old_log_prob
        log_prob = log_weight + minibatch["action_log_prob"]
        return {"loss_objective": -(log_prob * advantage).mean(), "log_weight": log_weight.detach()}


def _surrogate(terms: Terms, advantage: Tensor, low: float, high: float) -> dict[str, Tensor]:
    objective, log_weight = _ClippedSurrogate.apply(terms.log_prob, terms.old_log_prob, advantage, low, high)  # type: ignore[no-untyped-call]
    return {"loss_objective": objective, "log_weight": log_weight}


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The negative of eq. 7's mean, the log ratios, and the derivative by ``log_prob``, both ``[n]``."""
    log_weight = log_prob - old_log_prob
    ratio = log_weight.exp()
    gain, clipped = ratio * advantage, ratio.clamp(low, high) * advantage
    lower = torch.minimum(gain, clipped)  # finite where it is clipped, even if the ratio overflows
    return -lower.mean(), log_weight, lower.mul_(gain <= clipped).div_(-len(gain))


class _ClippedSurrogate(torch.autograd.Function):
    """`clipped_surrogate` as one node of the graph; the log ratios carry no gradient."""

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
