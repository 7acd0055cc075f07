"""From a network's outputs to a distribution over actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any, ClassVar, cast

import torch
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, mappings
from torch import Tensor, distributions, nn
from torch.nn.functional import pad, softplus
from torchrl.data import TensorSpec
from torchrl.modules import IndependentNormal, TanhNormal

from rlexp.config import ConfigError, Problem
from rlexp.policies.spaces import choices


@dataclass(frozen=True)
class Head:
    """What stands between a network and the actor's distribution.

    Attributes:
        outputs: features that it reads.
        module: from them to the distribution's parameters.
        keys: names of the parameters.
        distribution_class: of torch or torchrl.
        distribution_kwargs: its further arguments.
        bias: initial bias of the layer that gives the features ``[outputs]``, for a starting standard deviation of the
            network's own; None leaves it.
    """

    outputs: int
    module: nn.Module
    keys: list[str]
    distribution_class: type[distributions.Distribution]
    distribution_kwargs: dict[str, Any]
    bias: Tensor | None = None


@dataclass(frozen=True)
class Scale:
    """How a Gaussian gets its standard deviation; see `rlexp.policies.GaussianConfig`."""

    state_independent: bool
    mapping: str
    lower_bound: float
    upper_bound: float | None
    initial: float | None


def head(kind: str, spec: TensorSpec, scale: Scale | None) -> Head:
    """The head of one of `rlexp.policies.spaces.distributions_for`.

    Args:
        kind: the distribution's name.
        spec: of one environment's actions, on the networks' device.
        scale: for ``normal`` and ``tanh_normal``.
    """
    bounds = {"low": spec.space.low, "high": spec.space.high} if kind in ("tanh_normal", "beta") else {}
    match kind:
        case "categorical" if spec.shape:
            sizes = choices(spec)
            return Head(sum(sizes), LogitsByChoice(sizes), ["logits"], FactorizedCategorical, {})
        case "categorical":
            return Head(spec.space.n, nn.Identity(), ["logits"], distributions.Categorical, {})
        case "beta":
            return Head(2 * spec.shape[0], BetaParameters(), ["alpha", "beta"], BoundedBeta, bounds)
        case _:
            assert scale is not None
            low, high = scale.lower_bound, inf if scale.upper_bound is None else scale.upper_bound
            actions = spec.shape[0]
            start = 0.0 if scale.initial is None else parameter_of(scale.initial, scale.mapping)
            family = TanhNormal if kind == "tanh_normal" else IndependentNormal
            module: nn.Module
            if scale.state_independent:
                options = {"scale_mapping": scale.mapping, "device": spec.device, "init_value": start}
                module = BoundedNormalScale(actions, scale_lb=low, scale_ub=high, **options)
                return Head(actions, module, ["loc", "scale"], family, bounds)
            module = nn.Sequential(NormalParamExtractor(scale.mapping, scale_lb=0.0), ScaleBounds(low, high))
            bias = None if scale.initial is None else torch.tensor([0.0] * actions + [start] * actions)
            return Head(2 * actions, module, ["loc", "scale"], family, bounds, bias)


def parameter_of(scale: float, mapping: str) -> float:
    """The parameter that a mapping of ``tensordict.nn.mappings`` takes to a standard deviation, found by bisection.

    Raises:
        ConfigError: the mapping does not reach it.
    """
    to_scale = mappings(mapping)
    low, high = -30.0, 30.0

    def reached(x: float) -> float:
        return float(to_scale(torch.tensor(x, dtype=torch.float64)))

    if not reached(low) <= scale <= reached(high):
        message = f"cannot be reached by policy.scale_mapping={mapping}, which begins at {reached(low):.3g}."
        raise ConfigError([Problem("policy.scale_init", message, str(scale))])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < scale else (low, middle)
    return (low + high) / 2


def within(scale: Tensor, low: float, high: float) -> Tensor:
    """A standard deviation clamped to its bounds, with a gradient that can lead back between them.

    The derivative of a clamp is 0 beyond a bound, where a deviation would then stay for ever. Here a gradient passes
    there if a step against it leads back.
    """
    return _clamped(_passing(scale, scale.detach(), low, high), low, high)


def _clamped(scale: Tensor, low: float, high: float) -> Tensor:
    """Clamped, with a straight-through gradient."""
    return cast("Tensor", _Clamped.apply(scale, low, high)) if torch.is_grad_enabled() else scale.clamp(low, high)  # type: ignore[no-untyped-call]


_one_way = True


@contextmanager
def both_ways() -> Iterator[None]:
    """Let gradients of any sign pass at the bounds of a deviation, in policies that are evaluated inside.

    For second derivatives: the signs of what they pass back do not say where a step leads.
    """
    global _one_way
    _one_way = False
    try:
        yield
    finally:
        _one_way = True


def _passing(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """``x``, with a gradient that passes where its deviation lies between the bounds, or a step leads it back there."""
    if not (_one_way and torch.is_grad_enabled()):
        return x
    return cast("Tensor", _Passing.apply(x, scale, low, high))  # type: ignore[no-untyped-call]


class _Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, low: float, high: float) -> Tensor:
        return scale.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], None, None


class _Passing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(scale > low, scale < high)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        above, below = ctx.saved_tensors
        passes = (above | (grad_outputs[0] < 0)) & (below | (grad_outputs[0] > 0))
        return grad_outputs[0] * passes, None, None, None


class BoundedNormalScale(AddStateIndependentNormalScale):
    """``tensordict.nn.AddStateIndependentNormalScale`` whose standard deviation is kept `within` two bounds.

    Whether a gradient passes beyond a bound is decided by its sum over all steps, since they share one parameter.

    Args:
        args, kwargs: as for tensordict's class.
        scale_ub: largest standard deviation.
    """

    def __init__(self, *args: Any, scale_ub: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale_ub = scale_ub

    def forward(self, loc: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Loc and scale, both ``[..., actions]``."""
        to_scale, parameter = mappings(self.scale_mapping), self.state_independent_scale
        parameter = _passing(parameter, to_scale(parameter.detach()), self.scale_lb, self.scale_ub)
        return (loc, _clamped(to_scale(parameter.expand_as(loc)), self.scale_lb, self.scale_ub), *others)


class ScaleBounds(nn.Module):
    """Keeps the standard deviation that a ``tensordict.nn.NormalParamExtractor`` gives `within` two bounds.

    Args:
        scale_lb, scale_ub: smallest and largest standard deviation.
    """

    def __init__(self, scale_lb: float, scale_ub: float) -> None:
        super().__init__()
        self.scale_lb, self.scale_ub = scale_lb, scale_ub

    def forward(self, parameters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Loc and scale, both ``[..., actions]``."""
        loc, scale = parameters
        return loc, within(scale, self.scale_lb, self.scale_ub)


NEVER = torch.finfo(torch.float32).min
"""The logit of what has probability 0: finite, so that its product with 0 is 0 in entropies and gradients."""


def places(sizes: Sequence[int]) -> Tensor:
    """Where the logits of each choice stand in a row of them all; those that a choice lacks come after the row's end.

    Args:
        sizes: values of each choice.

    Returns:
        ``[choices, largest]``.
    """
    starts, width = [0, *accumulate(sizes)], max(sizes)
    rows = [[start + k if k < n else starts[-1] for k in range(width)] for start, n in zip(starts, sizes, strict=False)]
    return torch.tensor(rows)


class LogitsByChoice(nn.Module):
    """A row of logits for each of several choices, all as long as the longest: what a choice lacks is `NEVER`.

    Args:
        sizes: values of each choice.
    """

    places: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("places", places(sizes), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """From ``[..., values]`` to ``[..., choices, largest]``."""
        return pad(logits, (0, 1), value=NEVER)[..., self.places]


class MaskedLogits(nn.Module):
    """Logits, `NEVER` where a mask does not allow the value.

    Args:
        spec: of one environment's actions.
    """

    places: Tensor

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        sizes = choices(spec)
        flags = places(sizes) if spec.shape else torch.arange(sizes[0])
        self.register_buffer("places", flags.clamp_max(sum(sizes) - 1), persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The same logits ``[..., values]`` or ``[..., choices, largest]``, for masks ``[..., values]``."""
        return logits.masked_fill(~mask[..., self.places], NEVER)


class FactorizedCategorical(distributions.Independent):  # type: ignore[type-arg]
    """Several choices, independent given the state: ``torch.distributions.Categorical`` for each.

    Args:
        logits: ``[..., choices, largest]``, as `LogitsByChoice` gives them.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__(distributions.Categorical(logits=logits), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        """The deterministic action: the most likely value of each choice ``[..., choices]``."""
        return self.mode


class BetaParameters(nn.Module):
    r"""$\alpha = 1 + \mathrm{softplus}(x)$, $\beta$ likewise: above 1 the density has one peak (Chou et al. 2017)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From ``[..., 2 * actions]`` to alpha and beta, each ``[..., actions]``."""
        alpha, beta = (1 + softplus(x)).chunk(2, -1)
        return alpha, beta


class BoundedBeta(distributions.Distribution):
    r"""Independent beta distributions stretched over the action bounds (Chou et al. 2017, eq. 5).

    $a = \mathrm{low} + (\mathrm{high} - \mathrm{low})\, x$ with $x \sim \mathrm{Beta}(\alpha, \beta)$.

    Args:
        alpha, beta: ``[..., actions]``.
        low, high: the bounds ``[actions]``.
    """

    has_rsample = True
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, alpha: Tensor, beta: Tensor, *, low: Tensor, high: Tensor) -> None:
        self._unit = distributions.Beta(alpha, beta, validate_args=False)
        low, high = low.to(alpha.device), high.to(alpha.device)  # they stay behind where a network is moved
        self.low, self.range = low, high - low
        super().__init__(alpha.shape[:-1], alpha.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Actions ``[*sample_shape, ..., actions]``."""
        return self.low + self.range * self._unit.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities ``[...]`` of actions ``[..., actions]``; one on a bound counts as one just inside it."""
        eps = torch.finfo(value.dtype).eps
        unit = ((value - self.low) / self.range).clamp(eps, 1 - eps)
        return cast("Tensor", (self._unit.log_prob(unit) - self.range.log()).sum(-1))

    def entropy(self) -> Tensor:
        """Differential entropies ``[...]``."""
        return cast("Tensor", (self._unit.entropy() + self.range.log()).sum(-1))

    @property
    def mean(self) -> Tensor:
        """Expected actions ``[..., actions]``."""
        return self.low + self.range * self._unit.mean

    @property
    def deterministic_sample(self) -> Tensor:
        """What is done where no noise is wanted: the mean."""
        return self.mean


@distributions.register_kl(BoundedBeta, BoundedBeta)  # type: ignore[untyped-decorator]
def _kl_bounded_beta(p: BoundedBeta, q: BoundedBeta) -> Tensor:
    """KL(p, q) ``[...]`` over the same bounds: that on the unit interval, since no invertible map changes it."""
    return distributions.kl_divergence(p._unit, q._unit).sum(-1)
