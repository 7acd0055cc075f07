"""What a loss asks of the networks, minibatch by minibatch, without torchrl's cost per call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence
from torchrl.modules import ProbabilisticActor, ValueOperator

from rlexp.policies import SquashedGaussian
from rlexp.policies.perceptron import Perceptron


class Terms(NamedTuple):
    """What a policy gives a loss for a minibatch of n steps.

    Attributes:
        log_prob: of what was done, now ``[n]``.
        old_log_prob: the same when it was done ``[n]``. Both may lack a share that depends on the action alone: their
            difference does not.
        entropy: mean entropy now; None where it was not asked for.
        kl: mean of KL(then, now); None where it was not asked for.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    entropy: Tensor | None
    kl: Tensor | None


class PolicyTerms(Protocol):
    """Log-probabilities, entropies and divergences of an actor."""

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that a call reads."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write what each step needs and the update does not change, once for a batch."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """The terms of a minibatch, the mean entropy where it is asked for."""


def policy_terms(actor: ProbabilisticActor, *, kl: bool = False) -> PolicyTerms:
    """The terms of ``actor``, in the fastest way that is known; ``kl`` asks for the divergence as well."""
    gaussian = SquashedGaussian.of(actor)
    return DistributionTerms(actor, kl=kl) if gaussian is None else SquashedGaussianTerms(gaussian, kl=kl)


class DistributionTerms:
    """Those of any actor: it is asked for its distribution.

    KL has torch's closed form where there is one; else it is estimated from the actions that were taken, as mean of
    r - 1 - log r with the ratio r: unbiased in value and gradient, and never negative (Schulman 2020, "Approximating KL
    divergence", k3).
    """

    def __init__(self, actor: ProbabilisticActor, *, kl: bool) -> None:
        self._actor = actor
        self._parameters: list[str] = list(actor.dist_params_keys) if kl else []
        self.step_keys: list[str] = [*actor.in_keys, "action", "action_log_prob", *self._parameters]

    def prepare(self, batch: TensorDictBase) -> None:
        """Nothing is known of the distribution that could be done once."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """See `PolicyTerms`; an entropy without a closed form is estimated from one sample a step, as in torchrl."""
        dist = self._actor.get_dist(TensorDict({key: minibatch[key] for key in self._actor.in_keys}))
        log_prob, old_log_prob = dist.log_prob(minibatch["action"]), minibatch["action_log_prob"]
        mean_entropy = _entropy(dist).mean() if entropy else None
        if not self._parameters:
            return Terms(log_prob, old_log_prob, mean_entropy, None)
        old = self._actor.build_dist_from_params(TensorDict({key: minibatch[key] for key in self._parameters}))
        try:
            kl = kl_divergence(old, dist)
        except NotImplementedError:
            log_ratio = log_prob - old_log_prob
            kl = log_ratio.expm1() - log_ratio
        return Terms(log_prob, old_log_prob, mean_entropy, kl.mean())


class SquashedGaussianTerms:
    """Those of a ``TanhNormal`` actor, whose squashing depends on the action alone: it is undone once for all epochs.

    Log-probabilities are of the latent action: the squashing's share cancels in the ratio. KL is that of the latent
    Gaussians, which is the squashed ones': no invertible map changes it.
    """

    def __init__(self, gaussian: SquashedGaussian, *, kl: bool) -> None:
        self._gaussian, self._kl = gaussian, kl
        self._parameters_of = gaussian_parameters(gaussian)
        self.step_keys: list[str] = ["observation", "latent", "latent_log_prob", *(["loc", "scale"] if kl else [])]

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write the latent actions and their log-probabilities."""
        latent, log_slope = self._gaussian.latent(batch["action"])
        batch.set("latent", latent)
        batch.set("latent_log_prob", batch["action_log_prob"] + log_slope)

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """See `PolicyTerms`."""
        loc, scale = self._parameters_of(minibatch["observation"])
        log_prob: Tensor = _NormalLogProb.apply(minibatch["latent"], loc, scale)  # type: ignore[no-untyped-call]
        kl = _gaussian_kl(minibatch["loc"], minibatch["scale"], loc, scale).mean() if self._kl else None
        if not entropy:
            return Terms(log_prob, minibatch["latent_log_prob"], None, kl)
        # TanhNormal's entropy has no closed form; one reparameterised sample a step estimates it, as in torchrl.
        latent = loc + scale * torch.randn_like(loc)
        sampled = _NormalLogProb.apply(latent, loc, scale)  # type: ignore[no-untyped-call]
        mean_entropy = (self._gaussian.log_slope(latent) - sampled).mean()
        return Terms(log_prob, minibatch["latent_log_prob"], mean_entropy, kl)


def _gaussian_kl(old_loc: Tensor, old_scale: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """KL(old, new) of diagonal Gaussians ``[n, actions]`` -> ``[n]``; ``scale`` broadcasts."""
    ratio = old_scale / scale
    shift = (old_loc - loc) / scale
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)


def _entropy(dist: Distribution) -> Tensor:
    try:
        return dist.entropy()
    except NotImplementedError:
        sample = dist.rsample() if dist.has_rsample else dist.sample()
        return -dist.log_prob(sample)


class _NormalLogProb(torch.autograd.Function):
    """Log-density of a diagonal Gaussian, one node of the graph: ``latent`` and ``loc`` ``[n, actions]`` -> ``[n]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        z = (latent - loc) / scale
        ctx.save_for_backward(z, scale)
        return (z.square() * -0.5 - scale.log()).sum(-1) - 0.5 * math.log(2 * math.pi) * loc.shape[-1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        z, scale = ctx.saved_tensors
        by_z = grad_outputs[0][:, None] * z / scale
        by_scale = by_z * z - grad_outputs[0][:, None] / scale
        return -by_z if ctx.needs_input_grad[0] else None, by_z, by_scale.sum_to_size(scale.shape)


def gaussian_parameters(gaussian: SquashedGaussian) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From observations ``[n, observation]`` to loc ``[n, actions]`` and scale, which broadcasts with it."""
    from tensordict.nn import AddStateIndependentNormalScale

    network = gaussian.network
    if not isinstance(network, nn.Sequential) or (body := Perceptron.of(network[:-1])) is None:
        return network
    head = network[-1]
    if isinstance(head, AddStateIndependentNormalScale):
        like = torch.zeros_like(gaussian.middle)
        return lambda observation: (body(observation), head(like)[1])
    return lambda observation: head(body(observation))


def value_function(critic: ValueOperator) -> Callable[[dict[str, Tensor]], Tensor]:
    """From the entries of steps ``[n, ...]`` to their values ``[n, 1]``."""
    body = Perceptron.of(critic.module) if list(critic.in_keys) == ["observation"] else None
    if body is None:
        return lambda steps: critic(TensorDict({key: steps[key] for key in critic.in_keys}))["state_value"]
    return lambda steps: body(steps["observation"])
