"""What a loss asks of the networks, minibatch by minibatch, without torchrl's cost per call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, ValueOperator

from rlexp.policies import SquashedGaussian
from rlexp.policies.perceptron import Perceptron


class PolicyTerms(Protocol):
    """Log-probabilities and entropies of an actor."""

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that a call reads."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write what each step needs and the update does not change, once for a batch."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities ``[n]`` of what was done, now and then; the mean entropy where it is asked for.

        Both may lack a share that depends on the action alone: their difference does not.
        """


def policy_terms(actor: ProbabilisticActor) -> PolicyTerms:
    """The terms of ``actor``, in the fastest way that is known."""
    gaussian = SquashedGaussian.of(actor)
    return DistributionTerms(actor) if gaussian is None else SquashedGaussianTerms(gaussian)


class DistributionTerms:
    """Those of any actor: it is asked for its distribution."""

    def __init__(self, actor: ProbabilisticActor) -> None:
        self._actor = actor
        self.step_keys: list[str] = [*actor.in_keys, "action", "action_log_prob"]

    def prepare(self, batch: TensorDictBase) -> None:
        """Nothing is known of the distribution that could be done once."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `PolicyTerms`; an entropy without a closed form is estimated from one sample a step, as in torchrl."""
        dist = self._actor.get_dist(TensorDict({key: minibatch[key] for key in self._actor.in_keys}))
        mean_entropy = _entropy(dist).mean() if entropy else None
        return dist.log_prob(minibatch["action"]), minibatch["action_log_prob"], mean_entropy


class SquashedGaussianTerms:
    """Those of a ``TanhNormal`` actor, whose squashing depends on the action alone: it is undone once for all epochs.

    Log-probabilities are of the latent action: the squashing's share cancels in the ratio.
    """

    def __init__(self, gaussian: SquashedGaussian) -> None:
        self._gaussian = gaussian
        self._parameters_of = gaussian_parameters(gaussian)
        self.step_keys: list[str] = ["observation", "latent", "latent_log_prob"]

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write the latent actions and their log-probabilities."""
        latent, log_slope = self._gaussian.latent(batch["action"])
        batch.set("latent", latent)
        batch.set("latent_log_prob", batch["action_log_prob"] + log_slope)

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `PolicyTerms`."""
        loc, scale = self._parameters_of(minibatch["observation"])
        log_prob: Tensor = _NormalLogProb.apply(minibatch["latent"], loc, scale)  # type: ignore[no-untyped-call]
        if not entropy:
            return log_prob, minibatch["latent_log_prob"], None
        # TanhNormal's entropy has no closed form; one reparameterised sample a step estimates it, as in torchrl.
        latent = loc + scale * torch.randn_like(loc)
        sampled = _NormalLogProb.apply(latent, loc, scale)  # type: ignore[no-untyped-call]
        return log_prob, minibatch["latent_log_prob"], (self._gaussian.log_slope(latent) - sampled).mean()


def _entropy(dist: torch.distributions.Distribution) -> Tensor:
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
