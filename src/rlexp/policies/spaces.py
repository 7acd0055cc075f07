"""Which policies fit which observations and actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlexp.config import ConfigError, Problem

if TYPE_CHECKING:
    from torchrl.data import TensorSpec
    from torchrl.envs import EnvBase


def distributions_for(spec: TensorSpec) -> list[str]:
    """The distributions over the actions of a spec, the default first; none where no shipped policy can act."""
    from torchrl.data import Bounded, Unbounded

    if choices(spec):
        return ["categorical"]
    match spec:
        case Bounded() if len(spec.shape) == 1 and spec.dtype.is_floating_point and not _degenerate(spec):
            return ["tanh_normal", "normal", "beta"]
        case Bounded() | Unbounded() if len(spec.shape) == 1 and spec.dtype.is_floating_point:
            return ["normal"]
    return []


def choices(spec: TensorSpec) -> list[int]:
    """How many values each choice of an action has; none where an action is no choice, nor a vector of them."""
    from torchrl.data import Categorical, MultiCategorical

    match spec:
        case MultiCategorical() if len(spec.shape) == 1:
            return [int(n) for n in spec.nvec]
        case Categorical() if not spec.shape:
            return [int(spec.n)]
    return []


def described(spec: TensorSpec) -> str:
    """The actions of a spec in words."""
    from torchrl.data import Bounded, Categorical, MultiCategorical, Unbounded

    match spec:
        case MultiCategorical():
            return f"choices of {', '.join(map(str, spec.nvec.flatten().tolist()))} values"
        case Categorical():
            return f"discrete, one of {spec.n}"
        case Bounded() | Unbounded():
            bounds = "within bounds" if isinstance(spec, Bounded) else "without bounds"
            if isinstance(spec, Bounded) and _degenerate(spec):
                bounds = f"with a bound that equals the other or is more than {_WIDEST:g} away from it"
            return f"continuous, {bounds}, of shape {list(spec.shape)}"
    return f"a {type(spec).__name__} of shape {list(spec.shape)}"


_WIDEST = 1e6


def _degenerate(spec: TensorSpec) -> bool:
    """Whether nothing can be spread between the bounds: they are equal, or as good as none."""
    span = spec.space.high.double() - spec.space.low.double()
    return bool(((span <= 0) | (span > _WIDEST)).any())


def cannot_act(env: EnvBase, reason: str) -> ConfigError:
    """The error for a policy that does not fit an environment: the reason, and the options that fit."""
    from rlexp.envs.torchrl import entries

    action, shapes = env.action_spec_unbatched, [list(spec.shape) for spec in entries(env).values()]
    distributions = distributions_for(action)
    match {len(shape) for shape in shapes}:
        case dims if dims == {1} and distributions:
            options = [*distributions, "gru", "lstm"]
        case dims if 3 in dims and distributions:
            options = ["cnn"]
        case _:
            message = (
                f"{reason}. No shipped policy reads observations of shape {', '.join(map(str, shapes))} and chooses "
                f"{described(action)}: change them by env.transforms, or write a policy of your own."
            )
            return ConfigError([Problem("policy", message)])
    *others, last = options
    fits = f"{', '.join(others)} or {last}" if others else last
    return ConfigError([Problem("policy", f"{reason}. What fits: policy={fits}.")])
