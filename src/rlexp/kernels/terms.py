"""Log-probabilities, entropies, KL divergences and values of a minibatch, on plain tensors.

Reference: the distributions of ``torchrl.modules.ProbabilisticActor`` and the calls of ``ValueOperator``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.modules import ProbabilisticActor, ValueOperator

from rlexp.envs.actions import ACTION_MASK
from rlexp.kernels.distributions import Parts
from rlexp.kernels.mlp import MLPLayers, body_and_head, hooked
from rlexp.kernels.reading import Reading
from rlexp.losses.kl_penalty import divergence
from rlexp.policies.recurrent import CARRIED, RecurrentActor, RecurrentCritic


class Terms(NamedTuple):
    """What a loss needs of the policy for a minibatch of n steps.

    Attributes:
        log_prob: log-probability of the actions under the current policy ``[n]``.
        old_log_prob: the same under the policy that acted ``[n]``. Both may omit the same term, which depends
            on the action alone and cancels in their difference.
        entropy: mean entropy of the current policy; None where it was not asked for.
        kl: mean KL from the policy that acted to the current one; None where it was not asked for.
    """

    log_prob: Tensor
    old_log_prob: Tensor
    entropy: Tensor | None
    kl: Tensor | None


class PolicyTerms(Protocol):
    """Log-probabilities, entropies and divergences of an actor."""

    @property
    def keys(self) -> list[str]:
        """The entries of a prepared batch that a call reads."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write what each step needs and the update does not change, once for a batch."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """The terms of a minibatch, the mean entropy where it is asked for."""


def policy_terms(actor: ProbabilisticActor, *, kl: bool = False) -> PolicyTerms:
    """The terms of ``actor``, with closed forms where its distribution is known; ``kl`` asks for the KL as well."""
    parts = Parts.of(actor)
    return DistributionTerms(actor, kl=kl) if parts is None else FamilyTerms(actor, parts, kl=kl)


class DistributionTerms:
    """The terms of any actor, from its distribution.

    KL has torch's closed form where there is one; else it is estimated from one sample per step, as in torchrl.
    """

    def __init__(self, actor: ProbabilisticActor, *, kl: bool) -> None:
        self._actor = actor
        self._parameters: list[str] = list(actor.dist_params_keys) if kl else []
        self.keys: list[str] = [*actor.in_keys, "action", "action_log_prob", *self._parameters]

    def prepare(self, batch: TensorDictBase) -> None:
        """Nothing is known of the distribution that could be done once."""

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """See `PolicyTerms`; an entropy without a closed form is estimated from one sample a step, as in torchrl."""
        dist = self._actor.get_dist(TensorDict({key: minibatch[key] for key in self._actor.in_keys}))
        log_prob, old_log_prob = dist.log_prob(minibatch["action"]), minibatch["action_log_prob"]
        # The KL before the entropy: both may draw, and torchrl draws in this order.
        kl = self._kl(minibatch, dist).mean() if self._parameters else None
        return Terms(log_prob, old_log_prob, _entropy(dist).mean() if entropy else None, kl)

    def _kl(self, minibatch: dict[str, Tensor], dist: Distribution) -> Tensor:
        old = self._actor.build_dist_from_params(TensorDict({key: minibatch[key] for key in self._parameters}))
        return divergence(old, dist)


class FamilyTerms:
    """The terms of an actor whose parts are known; what depends on the action alone is computed once for all epochs.

    Log-probabilities are of latent actions: a squashing's share, say, cancels in the ratio.
    """

    def __init__(self, actor: ProbabilisticActor, parts: Parts, *, kl: bool) -> None:
        self._family = parts.family
        self._parameters_of, self._masked = parameters_of(parts.reading), parts.masked
        self._old_parameters: list[str] = list(actor.dist_params_keys) if kl else []
        self.keys: list[str] = [*actor.in_keys, "latent", "latent_log_prob", *self._old_parameters]

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write the latent actions and their log-probabilities."""
        latent, excess = self._family.latent(batch["action"])
        batch.set("latent", latent)
        batch.set("latent_log_prob", batch["action_log_prob"] + excess)

    def __call__(self, minibatch: dict[str, Tensor], *, entropy: bool) -> Terms:
        """See `PolicyTerms`."""
        parameters = self._parameters_of(minibatch)
        if self._masked is not None:
            parameters = (self._masked(*parameters, minibatch[ACTION_MASK]),)
        log_prob = self._family.log_prob(minibatch["latent"], *parameters)
        mean_entropy = self._family.entropy(*parameters) if entropy else None
        kl = None
        if self._old_parameters:
            kl = self._family.kl(tuple(minibatch[key] for key in self._old_parameters), parameters).mean()
        return Terms(log_prob, minibatch["latent_log_prob"], mean_entropy, kl)


def _entropy(dist: Distribution) -> Tensor:
    try:
        return dist.entropy()
    except NotImplementedError:
        sample = dist.rsample() if dist.has_rsample else dist.sample()
        return -dist.log_prob(sample)


def parameters_of(reading: Reading) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
    """From the entries of steps ``[n, ...]`` to an actor's parameters, which broadcast with ``[n, outputs]``."""
    network, inputs = reading.network, reading.inputs
    if isinstance(network, RecurrentActor):
        keys, length = [*reading.keys, *CARRIED], network.sequence_length
        return lambda steps: tuple(p.flatten(0, 1) for p in network(*sequences(steps, keys, length))[:-1])
    body, head = body_and_head(network) or (network, nn.Identity())
    perceptron = MLPLayers.of(body)
    forward = body if perceptron is None else perceptron
    if isinstance(head, AddStateIndependentNormalScale):
        # Not as torchrl does it: no copy of the standard deviation for each step.
        return lambda steps: (forward(*inputs(steps)), head(torch.zeros_like(head.state_independent_scale))[1])

    def parameters(steps: dict[str, Tensor]) -> tuple[Tensor, ...]:
        out = head(forward(*inputs(steps)))
        return (out,) if isinstance(out, Tensor) else out

    return parameters


def is_plain(critic: ValueOperator) -> bool:
    """Whether a critic's values are those of its network: no forward of a subclass, and no hooks."""
    return type(critic) is ValueOperator and not hooked(critic)


def value_function(critic: ValueOperator, *, alone: bool = False) -> Callable[[dict[str, Tensor]], Tensor]:
    """From the entries of steps ``[n, ...]`` to their values ``[n, 1]``.

    Args:
        critic: the critic.
        alone: evaluate each step by itself. Otherwise a recurrent critic takes the steps to be sequences, one after
            another, each starting from the state stored at its first step.
    """
    network = critic.module
    if isinstance(network, RecurrentCritic):
        if alone:
            return lambda steps: network(*(steps[key] for key in critic.in_keys))
        return lambda steps: network(*sequences(steps, critic.in_keys, network.sequence_length)).flatten(0, 1)
    if not is_plain(critic):
        return lambda steps: critic(TensorDict({key: steps[key] for key in critic.in_keys}))["state_value"]
    reading = Reading.of(critic.in_keys, network)
    forward = MLPLayers.of(reading.network) or reading.network
    return lambda steps: forward(*reading.inputs(steps))


def sequences(steps: dict[str, Tensor], keys: Sequence[str], length: int) -> list[Tensor]:
    """The inputs of a recurrent network, from steps ``[n, ...]`` to ``[n / length, length, ...]``."""
    return [steps[key].unflatten(0, (-1, length)) for key in keys]
