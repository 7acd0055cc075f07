"""The gradient of PPO's clipped loss and of SPO's, written out for Gaussian actors and critics that are plain MLPs.

Reference: `rlexp.losses.module.AutogradGradient` of `rlexp.losses.module.Loss` over ``torchrl.objectives.ClipPPOLoss``
or `rlexp.losses.surrogates.SPOLoss`.
"""

from __future__ import annotations

from math import inf
from typing import cast

import torch
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn

from rlexp.kernels.distributions import Gaussian, Parts, SquashedGaussian, gaussian_log_prob
from rlexp.kernels.losses import FastClipPPO, FastSPO
from rlexp.kernels.mlp import MLPGradient, MLPLayers, body_and_head
from rlexp.kernels.reading import Reading
from rlexp.kernels.terms import is_plain
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.module import MinibatchLoss
from rlexp.policies import ActorCritic
from rlexp.policies.heads import BoundedNormalScale
from rlexp.policies.recurrent import RecurrentActor


class WrittenOutGradient:
    r"""The gradient of `FastClipPPO` or `FastSPO` for a Gaussian actor, squashed or not, and a critic: plain MLPs.

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
        reads: what actor and critic read.
    """

    def __init__(
        self,
        loss: FastClipPPO | FastSPO,
        gaussian: SquashedGaussian | Gaussian,
        actor: MLPLayers,
        head: nn.Module,
        critic: MLPLayers,
        reads: tuple[Reading, Reading],
    ) -> None:
        self._loss = loss
        self._actor_reads, self._critic_reads = reads
        self._gaussian = gaussian
        self._actor, self._head, self._critic = MLPGradient(actor), head, MLPGradient(critic)
        self._like: Tensor | None = None
        if isinstance(head, AddStateIndependentNormalScale):
            self._like = torch.zeros_like(head.state_independent_scale)
        self._exponential: nn.Parameter | None = None
        if type(head) is BoundedNormalScale and head.scale_mapping == "exp":
            self._exponential, self._lower_bound = head.state_independent_scale, float(head.scale_lb)
            self._upper_bound = float(head.scale_ub)

    @classmethod
    def of(cls, loss: MinibatchLoss, networks: ActorCritic) -> WrittenOutGradient:
        """The gradient of ``loss``.

        Raises:
            UnsupportedError: it or a network is of another kind.
        """
        if not isinstance(loss, FastClipPPO | FastSPO):
            raise UnsupportedError("the loss is not PPO's clipped surrogate or SPO's")
        if loss.clip_value is not None:
            raise UnsupportedError("loss.clip_value is set")
        parts = Parts.of(networks.actor)
        if parts is None:
            raise UnsupportedError("the actor is not a network followed by a known distribution")
        if (body := body_and_head(parts.network)) is None:
            kind = "is recurrent" if isinstance(parts.network, RecurrentActor) else "has encoders or a form of its own"
            raise UnsupportedError(f"the policy {kind}")
        if not isinstance(parts.family, SquashedGaussian | Gaussian):
            raise UnsupportedError("the actor's distribution is not Gaussian")
        if not is_plain(networks.critic):
            raise UnsupportedError("the critic is more than its network")
        critic = Reading.of(networks.critic.in_keys, networks.critic.module)
        actor, value = MLPLayers.of(body[0]), MLPLayers.of(critic.network)
        if actor is None or value is None:
            raise UnsupportedError("actor or critic is not an MLP of linear layers with Tanh or ReLU")
        if not {*map(id, actor.parameters)}.isdisjoint(map(id, value.parameters)):  # each would overwrite the other's
            raise UnsupportedError("actor and critic share layers")
        if not (actor.trained and value.trained and all(p.requires_grad for p in body[1].parameters())):
            raise UnsupportedError("weights are frozen")
        return cls(loss, parts.family, actor, body[1], value, (parts.reading, critic))

    def __call__(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Write the gradient, and return what the loss gave; a critic that the loss leaves out keeps its gradient."""
        loss = self._loss
        with torch.no_grad():
            raw, hidden = self._actor.forward(*self._actor_reads.inputs(minibatch))
            distribution = self._distribution(raw)
            loc, scale = (parameter.detach() for parameter in distribution)
            z = (minibatch["latent"] - loc) / scale
            log_prob = gaussian_log_prob(z, scale)
            objective, log_weight, by_log_prob = loss.surrogate(
                log_prob, minibatch["latent_log_prob"], loss.advantage(minibatch)
            )
            terms = {"loss_objective": objective, "log_weight": log_weight}
            weighted = by_log_prob[:, None] / scale
            by_loc = weighted * z
            by_scale = by_loc * z - weighted
            if loss.entropy_bonus:
                weight = -loss.module.entropy_coeff / len(z)
                entropy, entropy_by_loc, entropy_by_scale = self._entropy(loc, scale)
                by_loc += weight * entropy_by_loc
                by_scale += weight * entropy_by_scale
                terms |= {"loss_entropy": -loss.module.entropy_coeff * entropy, "entropy": entropy}
            self._actor.backward(hidden, self._by_raw(raw, distribution, by_loc, by_scale))

            if not loss.trains_critic:
                return terms
            value, hidden = self._critic.forward(*self._critic_reads.inputs(minibatch))
            error = value - minibatch["value_target"]
            terms["loss_critic"] = loss.distance.of(error).mean() * loss.module.critic_coeff
            by_value = loss.distance.slope(error) * (loss.module.critic_coeff / len(error))
            self._critic.backward(hidden, by_value)
        return terms

    def _distribution(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Loc and scale ``[n, actions]``, with the graph of what lies between them and the perceptron's output."""
        if self._exponential is not None:
            self._unbounded = self._exponential.exp()
            return raw, self._unbounded.clamp(self._lower_bound, self._upper_bound)
        with torch.enable_grad():
            if self._like is None:
                return cast("tuple[Tensor, Tensor]", self._head(raw.requires_grad_()))
            return raw, self._head(self._like)[1]

    def _by_raw(self, raw: Tensor, distribution: tuple[Tensor, Tensor], by_loc: Tensor, by_scale: Tensor) -> Tensor:
        """The derivative by the perceptron's output; that by the head's own parameter is written into its ``grad``."""
        if self._like is None:
            return torch.autograd.grad(distribution, raw, (by_loc, by_scale))[0]
        if self._exponential is not None:
            by_scale = by_scale.sum(0)
            moves = (self._unbounded > self._lower_bound) | (by_scale < 0)
            if self._upper_bound < inf:
                moves &= (self._unbounded < self._upper_bound) | (by_scale > 0)
            by_parameter = by_scale * self._unbounded * moves
            cast("Tensor", self._exponential.grad).copy_(by_parameter)
            return by_loc
        for parameter in self._head.parameters():
            (by_parameter,) = torch.autograd.grad(distribution[1], parameter, by_scale.sum(0))
            cast("Tensor", parameter.grad).copy_(by_parameter)
        return by_loc

    def _entropy(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The Gaussian's entropy, estimated from one reparameterised sample a step if squashed, and its derivatives.

        $H = \mathbb{E}[\log \mathrm{scale} + \epsilon^2 / 2 + \log|\mathrm{d}a / \mathrm{d}u|]$ at
        $u = \mathrm{loc} + \mathrm{scale}\,\epsilon$; the last term's derivative by $u$ is $-2 \tanh u$.
        """
        if isinstance(self._gaussian, Gaussian):
            return self._gaussian.entropy(loc, scale), torch.zeros_like(loc), (1 / scale).expand_as(loc)
        noise = torch.randn_like(loc)
        latent = loc + scale * noise
        by_latent = -2 * latent.tanh()
        entropy = (self._gaussian.log_slope(latent) - gaussian_log_prob(noise, scale)).mean()
        return entropy, by_latent, by_latent * noise + 1 / scale
