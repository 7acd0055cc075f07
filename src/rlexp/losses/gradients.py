"""The gradient of a minibatch's loss: by autograd, or written out where the networks and the loss are plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import cast

import torch
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn
from torchrl.modules import ValueOperator

from rlexp.losses import MinibatchLoss
from rlexp.losses.ppo import LeanClipPPOLoss, clipped_surrogate
from rlexp.policies import ActorCritic
from rlexp.policies.families import Gaussian, Parts, SquashedGaussian
from rlexp.policies.perceptron import Perceptron, PerceptronGradient


def gradient_of(
    loss: MinibatchLoss, networks: ActorCritic, compiled: Callable[[], bool] = lambda: False
) -> WrittenOutGradient | AutogradGradient:
    """What writes the gradient of a minibatch into the networks' ``grad``, in the fastest way that is known.

    Args:
        loss: the loss.
        networks: what it trains.
        compiled: whether to compile the loss; not asked where its gradient is written out, which is faster still, and
            where it reads sequences, whose lengths are new with each minibatch.
    """
    if (written_out := WrittenOutGradient.of(loss, networks)) is not None:
        return written_out
    return AutogradGradient(loss, networks.parameters(), compiled=networks.sequence_length == 1 and compiled())


class AutogradGradient:
    """Any loss's, of any networks.

    Args:
        loss: the loss.
        parameters: what it trains.
        compiled: by ``torch.compile``, which takes half a minute at the first minibatch.
    """

    def __init__(self, loss: MinibatchLoss, parameters: Sequence[nn.Parameter], *, compiled: bool = False) -> None:
        self._losses = torch.compile(loss.losses, dynamic=False) if compiled else loss.losses
        self._parameters = parameters

    def __call__(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write the gradient, and return what the loss gave, detached."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        losses = self._losses(minibatch)
        reduce(torch.add, (value for name, value in losses.items() if name.startswith("loss_"))).backward()
        return {name: value.detach() for name, value in losses.items()}


class WrittenOutGradient:
    r"""`LeanClipPPOLoss`'s, for a Gaussian actor, squashed or not, and a critic that are perceptrons.

    At minibatches of some hundred steps autograd's bookkeeping takes longer than the arithmetic. What the loss has to
    differentiate is short: with $z = (u - \mathrm{loc}) / \mathrm{scale}$ for the latent action $u$,
    $\log \pi = \sum -z^2 / 2 - \log \mathrm{scale}$, so that its derivatives are $z / \mathrm{scale}$ by loc and
    $(z^2 - 1) / \mathrm{scale}$ by scale.

    Args:
        loss: the loss.
        gaussian: the family of its actor.
        actor: the perceptron before the actor's last module, which makes loc and scale of its output.
        head: that last module.
        critic: the critic's perceptron.
    """

    def __init__(
        self,
        loss: LeanClipPPOLoss,
        gaussian: SquashedGaussian | Gaussian,
        actor: Perceptron,
        head: nn.Module,
        critic: Perceptron,
    ) -> None:
        self._loss = loss
        self._gaussian = gaussian
        self._actor, self._head, self._critic = PerceptronGradient(actor), head, PerceptronGradient(critic)
        self._like: Tensor | None = None
        if isinstance(head, AddStateIndependentNormalScale):
            self._like = torch.zeros_like(head.state_independent_scale)
        self._exponential: nn.Parameter | None = None
        if isinstance(head, AddStateIndependentNormalScale) and head.scale_mapping == "exp":
            self._exponential, self._lower_bound = head.state_independent_scale, float(head.scale_lb)

    @classmethod
    def of(cls, loss: MinibatchLoss, networks: ActorCritic) -> WrittenOutGradient | None:
        """The gradient of ``loss``, or None where it or a network is of another kind."""
        parts = Parts.of(networks.actor)
        if type(loss) is not LeanClipPPOLoss or loss.clip_value is not None or parts is None:
            return None
        if not isinstance(parts.network, nn.Sequential):
            return None
        critic = cast("ValueOperator", networks.critic)
        actor, value = Perceptron.of(parts.network[:-1]), Perceptron.of(critic.module)
        if actor is None or value is None or list(critic.in_keys) != ["observation"]:
            return None
        shared = set(actor.layers) & set(value.layers)  # theirs is the sum of two gradients, and each overwrites
        if shared or not isinstance(parts.family, SquashedGaussian | Gaussian):
            return None
        return cls(loss, parts.family, actor, parts.network[-1], value)

    def __call__(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write the gradient, and return what the loss gave."""
        loss, observation = self._loss, minibatch["observation"]
        with torch.no_grad():
            raw, hidden = self._actor.forward(observation)
            distribution = self._distribution(raw)
            loc, scale = (parameter.detach() for parameter in distribution)
            z = (minibatch["latent"] - loc) / scale
            log_prob = normal_log_prob(z, scale)
            objective, log_weight, by_log_prob = clipped_surrogate(
                log_prob, minibatch["latent_log_prob"], loss.normalized(minibatch["advantage"][:, 0]), *loss.bounds
            )
            terms = {"loss_objective": objective, "log_weight": log_weight}
            weighted = by_log_prob[:, None] / scale
            by_loc = weighted * z
            by_scale = by_loc * z - weighted
            if loss.entropy_bonus:
                weight = -loss.entropy_coeff / len(z)
                entropy, entropy_by_loc, entropy_by_scale = self._entropy(loc, scale)
                by_loc += weight * entropy_by_loc
                by_scale += weight * entropy_by_scale
                terms |= {"loss_entropy": -loss.entropy_coeff * entropy, "entropy": entropy}
            self._actor.backward(hidden, self._by_raw(raw, distribution, by_loc, by_scale))

            value, hidden = self._critic.forward(observation)
            error = value - minibatch["value_target"]
            distance, slope = _DISTANCES[loss.loss_critic_type](error)
            terms["loss_critic"] = distance * loss.critic_coeff
            by_value = slope * (loss.critic_coeff / len(error))
            self._critic.backward(hidden, by_value)
        return terms

    def _distribution(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and scale ``[n, actions]``, with the graph of what lies between them and the perceptron's output."""
        if self._exponential is not None:
            return raw, self._exponential.exp().clamp_min(self._lower_bound)
        with torch.enable_grad():
            if self._like is None:
                return cast("tuple[Tensor, Tensor]", self._head(raw.requires_grad_()))
            return raw, self._head(self._like)[1]

    def _by_raw(self, raw: Tensor, distribution: tuple[Tensor, Tensor], by_loc: Tensor, by_scale: Tensor) -> Tensor:
        """The derivative by the perceptron's output; that by the head's own parameter is written into its ``grad``."""
        if self._like is None:
            return torch.autograd.grad(distribution, raw, (by_loc, by_scale))[0]
        if self._exponential is not None:
            scale = distribution[1]
            by_parameter = by_scale.sum(0) * scale * (scale > self._lower_bound)
            cast("Tensor", self._exponential.grad).copy_(by_parameter)
            return by_loc
        for parameter in self._head.parameters():
            (by_parameter,) = torch.autograd.grad(distribution[1], parameter, by_scale.sum(0))
            cast("Tensor", parameter.grad).copy_(by_parameter)
        return by_loc

    def _entropy(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The Gaussian's; if it is squashed, estimated from one reparameterised sample a step. And its derivatives.

        $H = \mathbb{E}[\log \mathrm{scale} + \epsilon^2 / 2 + \log|\mathrm{d}a / \mathrm{d}u|]$ at
        $u = \mathrm{loc} + \mathrm{scale}\,\epsilon$; the last term's derivative by $u$ is $-2 \tanh u$.
        """
        if isinstance(self._gaussian, Gaussian):
            return self._gaussian.entropy(loc, scale), torch.zeros_like(loc), (1 / scale).expand_as(loc)
        noise = torch.randn_like(loc)
        latent = loc + scale * noise
        by_latent = -2 * latent.tanh()
        entropy = (self._gaussian.log_slope(latent) - normal_log_prob(noise, scale)).mean()
        return entropy, by_latent, by_latent * noise + 1 / scale


# From errors ``[n, 1]`` to the mean distance, and the derivative of each one's own distance.
_DISTANCES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "l1": lambda error: (error.abs().mean(), error.sign()),
    "l2": lambda error: (error.square().mean(), 2 * error),
    "smooth_l1": lambda error: (nn.functional.smooth_l1_loss(error, torch.zeros_like(error)), error.clamp(-1, 1)),
}


def normal_log_prob(z: Tensor, scale: Tensor) -> Tensor:
    """Log-density ``[n]`` of a diagonal Gaussian at ``z`` ``[n, actions]`` deviations from its mean."""
    return (z.square() * -0.5 - scale.log()).sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]
