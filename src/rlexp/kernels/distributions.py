"""Actors as a network and a family of distributions, in NumPy to act and in torch to learn.

Reference: ``torchrl.modules.ProbabilisticActor`` with ``TanhNormal``, ``IndependentNormal`` or torch's ``Categorical``,
one or several, masked or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log, pi
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributions import Categorical
from torch.nn.functional import log_softmax, softplus
from torchrl.modules import IndependentNormal, ProbabilisticActor, TanhNormal

from rlexp.kernels.mlp import hooked
from rlexp.kernels.reading import Reading
from rlexp.policies.heads import FactorizedCategorical, MaskedLogits
from rlexp.policies.recurrent import CARRIED, RecurrentActor

Array = npt.NDArray[Any]


class Family(Protocol):
    """What actors do with the outputs of their networks: in NumPy to act, in torch to learn.

    A latent is an action in the form that learning wants it in, ``[..., *action]``.
    """

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """The random numbers that `act` needs for a step, in float32, of the shape of its first parameter."""

    def act(self, parameters: tuple[Array, ...], noise: Array | None) -> Array:
        """Actions ``[num_envs, *action]``; without noise, torchrl's deterministic sample."""

    def sample(self, *parameters: Tensor) -> Tensor:
        """Actions ``[n, *action]`` as `act` gives them, in torch on the parameters' device, with noise drawn there."""

    def latent(self, action: Tensor) -> tuple[Tensor, Tensor | float]:
        """Latents of actions, and the log-density that they have in excess of the actions ``[...]``."""

    def log_prob(self, latent: Tensor, *parameters: Tensor) -> Tensor:
        """Log-densities ``[n]`` of latents."""

    def entropy(self, *parameters: Tensor) -> Tensor:
        """Mean entropy of the actions' distributions; estimated from a sample each where there is no closed form."""

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """KL(old, new) ``[n]`` of the actions' distributions, from their parameters."""


@dataclass(frozen=True)
class Parts:
    """An actor taken apart.

    Attributes:
        reading: the network, from an observation ``[..., *observation]`` to parameters, and the entries that it reads;
            a `RecurrentActor` reads and returns more.
        family: from parameters to actions.
        masked: from the network's logits and the action masks to the parameters; None without masks.
    """

    reading: Reading
    family: Family
    masked: MaskedLogits | None = None

    @property
    def network(self) -> nn.Module:
        """The network."""
        return self.reading.network

    @classmethod
    def of(cls, actor: TensorDictModuleBase) -> Parts | None:
        """The parts of ``actor``, or None where it is of another kind and must be called as it is."""
        if type(actor) is not ProbabilisticActor or len(actor.module) != 2:
            return None
        network, sampler = actor.module
        if any(map(hooked, (actor, network, sampler))) or getattr(sampler, "safe", False):
            return None
        masked = None
        if isinstance(network, TensorDictSequential):
            if len(network.module) != 2 or not isinstance(network.module[1].module, MaskedLogits):
                return None
            if any(map(hooked, network.module)):
                return None
            network, masked = network.module[0], network.module[1].module
        if type(network) is not TensorDictModule:
            return None
        keys = list(network.in_keys)
        if isinstance(network.module, RecurrentActor):
            keys, carried = keys[: -len(CARRIED)], keys[-len(CARRIED) :]
            if carried != CARRIED:
                return None
        family = _family(sampler)
        return None if family is None else cls(Reading.of(keys, network.module), family, masked)


@dataclass(frozen=True)
class SquashedGaussian:
    r"""``TanhNormal``: $a = m + h \tanh(u)$ with the latent $u \sim \mathcal{N}(\mathrm{loc}, \mathrm{scale})$.

    Attributes:
        middle: $m$, the middle of the action bounds ``[actions]``.
        half_range: $h$, half the distance between them.
    """

    middle: Tensor
    half_range: Tensor

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal."""
        return torch.randn(shape)

    def act(self, parameters: tuple[Array, ...], noise: Array | None) -> Array:
        """See `Family`; no action lies on a bound, where the squashing has no inverse."""
        loc, scale = parameters
        limit, middle, half_range = self._arrays
        squashed = np.tanh(loc if noise is None else loc + scale * noise).clip(-limit, limit)
        return cast("Array", middle + half_range * squashed)

    def sample(self, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        loc, scale = parameters
        limit = 1 - torch.finfo(torch.float32).resolution
        squashed = (loc + scale * torch.randn_like(loc)).tanh().clamp(-limit, limit)
        return self.middle + self.half_range * squashed

    @cached_property
    def _arrays(self) -> tuple[Any, Array, Array]:
        limit = np.float32(1 - torch.finfo(torch.float32).resolution)
        return limit, self.middle.numpy(force=True), self.half_range.numpy(force=True)

    def latent(self, action: Tensor) -> tuple[Tensor, Tensor]:
        r"""Undo the squashing as ``TanhNormal`` does, actions on the bounds moved just inside them.

        Args:
            action: ``[..., actions]``.

        Returns:
            $u$ ``[..., actions]``, and $\log |\mathrm{d}a / \mathrm{d}u|$ summed over the actions ``[...]``.
        """
        limit = 1 - torch.finfo(action.dtype).resolution
        u = ((action - self.middle) / self.half_range).clamp(-limit, limit).atanh()
        return u, self.log_slope(u)

    def log_slope(self, u: Tensor) -> Tensor:
        r"""$\log |\mathrm{d}a / \mathrm{d}u|$ at ``u`` ``[..., actions]``, summed over the actions ``[...]``."""
        # log(1 - tanh(u)^2), in the form that stays exact for large u
        return (2 * (log(2) - u - softplus(-2 * u)) + self.half_range.abs().log()).sum(-1)

    def log_prob(self, latent: Tensor, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        return cast("Tensor", _NormalLogProb.apply(latent, *parameters))  # type: ignore[no-untyped-call]

    def entropy(self, *parameters: Tensor) -> Tensor:
        """Estimated by one reparameterised sample a step, as in torchrl."""
        loc, scale = parameters
        latent = loc + scale * torch.randn_like(loc)
        return (self.log_slope(latent) - self.log_prob(latent, loc, scale)).mean()

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """That of the latent Gaussians: no invertible map changes it."""
        return _gaussian_kl(*old, *new)


class Gaussian:
    """``IndependentNormal``: an action is its own latent, and the environment clips what lies beyond its bounds."""

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal."""
        return torch.randn(shape)

    def act(self, parameters: tuple[Array, ...], noise: Array | None) -> Array:
        """See `Family`."""
        loc, scale = parameters
        return loc if noise is None else loc + scale * noise

    def sample(self, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        loc, scale = parameters
        return loc + scale * torch.randn_like(loc)

    def latent(self, action: Tensor) -> tuple[Tensor, float]:
        """See `Family`."""
        return action, 0.0

    def log_prob(self, latent: Tensor, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        return cast("Tensor", _NormalLogProb.apply(latent, *parameters))  # type: ignore[no-untyped-call]

    def entropy(self, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        scale = parameters[1]
        return scale.log().sum(-1).mean() + 0.5 * (1 + log(2 * pi)) * scale.shape[-1]

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """See `Family`."""
        return _gaussian_kl(*old, *new)


@dataclass(frozen=True)
class CategoricalFamily:
    """``Categorical``: the number of one of n actions; or `FactorizedCategorical`: several such numbers.

    Attributes:
        several: whether an action is a vector of choices, with logits ``[..., choices, largest]``.
    """

    several: bool = False

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Gumbel's."""
        return -torch.empty(shape).exponential_().log()

    def act(self, parameters: tuple[Array, ...], noise: Array | None) -> Array:
        """The largest of the logits and their noise, which is a sample of their softmax (Maddison et al. 2017)."""
        (logits,) = parameters
        return cast("Array", np.argmax(logits if noise is None else logits + noise, -1))

    def sample(self, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        (logits,) = parameters
        return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)

    def latent(self, action: Tensor) -> tuple[Tensor, float]:
        """See `Family`."""
        return action, 0.0

    def log_prob(self, latent: Tensor, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        return self._together(log_softmax(parameters[0], -1).gather(-1, latent[..., None])[..., 0])

    def entropy(self, *parameters: Tensor) -> Tensor:
        """See `Family`."""
        log_probs = log_softmax(parameters[0], -1)
        return -self._together((log_probs.exp() * log_probs).sum(-1)).mean()

    def kl(self, old: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> Tensor:
        """See `Family`."""
        before, after = log_softmax(old[0], -1), log_softmax(new[0], -1)
        return self._together((before.exp() * (before - after)).sum(-1))

    def _together(self, by_choice: Tensor) -> Tensor:
        return by_choice.sum(-1) if self.several else by_choice


def _gaussian_kl(old_loc: Tensor, old_scale: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """KL(old, new) of diagonal Gaussians ``[n, actions]`` -> ``[n]``; ``scale`` broadcasts."""
    ratio, shift = old_scale / scale, (old_loc - loc) / scale
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)


def gaussian_log_prob(z: Tensor, scale: Tensor) -> Tensor:
    """Log-density ``[n]`` of a diagonal Gaussian, ``z`` ``[n, actions]`` standard deviations from its mean."""
    return (z.square() * -0.5 - scale.log()).sum(-1) - 0.5 * log(2 * pi) * z.shape[-1]


class _NormalLogProb(torch.autograd.Function):
    """Log-density of a diagonal Gaussian, one node of the graph: ``latent`` and ``loc`` ``[n, actions]`` -> ``[n]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        z = (latent - loc) / scale
        ctx.save_for_backward(z, scale)
        return gaussian_log_prob(z, scale)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        z, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        by_z = grad_outputs[0][:, None] * z / scale
        by_scale = by_z * z - grad_outputs[0][:, None] / scale
        return -by_z if ctx.needs_input_grad[0] else None, by_z, by_scale.sum_to_size(scale.shape)  # type: ignore[attr-defined]


def _family(sampler: ProbabilisticTensorDictModule) -> Family | None:
    options = sampler.distribution_kwargs
    match sampler.distribution_class, list(sampler.in_keys), set(options):
        case distribution, ["loc", "scale"], names if distribution is TanhNormal and names == {"low", "high"}:
            low, high = options["low"], options["high"]
            if not (isinstance(low, Tensor) and isinstance(high, Tensor)):
                return None
            return SquashedGaussian((high + low) / 2, (high - low) / 2)
        case distribution, ["loc", "scale"], names if distribution is IndependentNormal and not names:
            return Gaussian()
        case distribution, ["logits"], names if distribution is Categorical and not names:
            return CategoricalFamily()
        case distribution, ["logits"], names if distribution is FactorizedCategorical and not names:
            return CategoricalFamily(several=True)
    return None
