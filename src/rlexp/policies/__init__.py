"""Policies: a `PolicySpec` describes actor and critic, `build` makes torchrl's modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log, prod, sqrt
from typing import TYPE_CHECKING

from rlexp.config import ConfigError, Count, Node, NonNegative, Positive, Problem, Spec, build_at, did_you_mean

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase
    from torch import Tensor, nn
    from torchrl.envs import EnvBase
    from torchrl.modules import ProbabilisticActor, ValueOperator

ACTIVATIONS = ("CELU", "ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Softplus", "Tanh")


@dataclass(frozen=True)
class ActorCritic:
    """The two networks that a run trains.

    Attributes:
        actor: reads ``observation`` ``[..., *observation]``, writes ``action`` and ``action_log_prob``.
        critic: reads ``observation``, writes ``state_value`` ``[..., 1]``.
    """

    actor: ProbabilisticActor
    critic: ValueOperator

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of both, each once, the actor's first."""
        return list(dict.fromkeys([*self.actor.parameters(), *self.critic.parameters()]))


@dataclass(frozen=True)
class SquashedGaussian:
    r"""A ``TanhNormal`` actor taken apart, for loops that want no distribution object per step.

    $a = m + h \tanh(u)$ with $u \sim \mathcal{N}(\mathrm{loc}, \mathrm{scale})$.

    Attributes:
        network: observation ``[..., *observation]`` -> loc and scale, each ``[..., actions]``.
        middle: $m$, the middle of the action bounds.
        half_range: $h$, half the distance between them.
    """

    network: nn.Module
    middle: Tensor
    half_range: Tensor

    @classmethod
    def of(cls, actor: TensorDictModuleBase) -> SquashedGaussian | None:
        """The parts of ``actor``, or None where it is another kind and must be called as it is."""
        from tensordict.nn import TensorDictModule
        from torchrl.modules import ProbabilisticActor, TanhNormal

        if type(actor) is not ProbabilisticActor or len(actor.module) != 2:
            return None
        network, sampler = actor.module
        plain = (
            type(network) is TensorDictModule
            and (network.in_keys, network.out_keys) == (["observation"], ["loc", "scale"])
            and sampler.distribution_class is TanhNormal
            and set(sampler.distribution_kwargs) == {"low", "high"}
        )
        if not plain:
            return None
        low, high = sampler.distribution_kwargs["low"], sampler.distribution_kwargs["high"]
        return cls(network.module, (high + low) / 2, (high - low) / 2)

    def latent(self, action: Tensor) -> tuple[Tensor, Tensor]:
        r"""Undo the squashing as ``TanhNormal`` does, actions on the bounds moved just inside them.

        Args:
            action: ``[..., actions]``.

        Returns:
            $u$ ``[..., actions]``, and $\log |\mathrm{d}a / \mathrm{d}u|$ summed over the actions ``[...]``.
        """
        import torch

        limit = 1 - torch.finfo(action.dtype).resolution
        u = ((action - self.middle) / self.half_range).clamp(-limit, limit).atanh()
        return u, self.log_slope(u)

    def log_slope(self, u: Tensor) -> Tensor:
        r"""$\log |\mathrm{d}a / \mathrm{d}u|$ at ``u`` ``[..., actions]``, summed over the actions ``[...]``."""
        from torch.nn.functional import softplus

        # log(1 - tanh(u)^2), in the form that stays exact for large u
        return (2 * (log(2) - u - softplus(-2 * u)) + self.half_range.abs().log()).sum(-1)


class PolicySpec(Spec):
    """Base of all policies."""

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Fresh networks that fit the environment's specs, on ``device``.

        Raises:
            ConfigError: the policy cannot act in this environment.
        """
        raise NotImplementedError


class TanhNormalPolicy(PolicySpec):
    """A Gaussian squashed into the action bounds, and a critic of the same shape.

    Builds ``torchrl.modules.ProbabilisticActor`` over ``TanhNormal`` (Haarnoja et al. 2018, appendix C) and
    ``torchrl.modules.ValueOperator``, each with its own ``torchrl.modules.MLP``.

    Attributes:
        num_cells: width of each hidden layer.
        activation_class: name of the nonlinearity after each hidden layer, one of torch.nn's.
        actor_network: a network in place of the actor's MLP; called with ``in_features`` and ``out_features``.
        critic_network: the same for the critic.
        state_independent_scale: one learned standard deviation per action dimension, instead of a network output.
        scale_mapping: torchrl's name of the map from a parameter to a standard deviation.
        scale_lb: smallest standard deviation.
        orthogonal: orthogonal weights of gain sqrt(2) and zero biases, instead of torch's default.
        last_layer_gain: with ``orthogonal``, gain of the actor's last layer; small makes all first actions alike.
    """

    builds = ("torchrl.modules.MLP",)

    num_cells: list[Count]
    activation_class: str
    actor_network: Node | None
    critic_network: Node | None
    state_independent_scale: bool
    scale_mapping: str
    scale_lb: Positive
    orthogonal: bool
    last_layer_gain: NonNegative

    def problems(self) -> Iterator[Problem]:
        """At least one layer, and a nonlinearity that torch has."""
        if self.activation_class not in ACTIVATIONS:
            message = f"is no nonlinearity of torch.nn. {did_you_mean(self.activation_class, ACTIVATIONS)}"
            yield Problem("activation_class", message, self.activation_class)
        if not self.num_cells:
            yield Problem("num_cells", "needs the width of at least one hidden layer, e.g. [64,64].", "[]")

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Actor and critic for vector observations and bounded actions."""
        from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule
        from torch import nn
        from torchrl.data import Bounded
        from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator

        action_spec = env.action_spec_unbatched.to(device)
        if not isinstance(action_spec, Bounded):
            message = "TanhNormal needs an action space with finite bounds; this environment's has none."
            raise ConfigError([Problem("policy", message)])
        actions = prod(action_spec.shape)
        features = prod(env.observation_spec_unbatched["observation"].shape)

        def network(key: str, node: Node | None, out_features: int) -> nn.Module:
            if node is not None:
                build = partial(node.build, in_features=features, out_features=out_features)
                own: nn.Module = build_at(f"policy.{key}", build)
                return own.to(device)
            mlp: nn.Module = MLP(
                in_features=features,
                out_features=out_features,
                num_cells=[int(width) for width in self.num_cells],
                activation_class=getattr(nn, self.activation_class),
                device=device,
            )
            return mlp

        if self.state_independent_scale:
            head: nn.Module = AddStateIndependentNormalScale(
                actions, scale_mapping=self.scale_mapping, scale_lb=self.scale_lb, device=device
            )
            outputs = actions
        else:
            head = NormalParamExtractor(scale_mapping=self.scale_mapping, scale_lb=self.scale_lb)
            outputs = 2 * actions
        actor_net = nn.Sequential(network("actor_network", self.actor_network, outputs), head)
        critic_net = network("critic_network", self.critic_network, 1)
        if self.orthogonal:
            _orthogonal(actor_net[0], last_gain=self.last_layer_gain)
            _orthogonal(critic_net, last_gain=1.0)
        actor = ProbabilisticActor(
            TensorDictModule(actor_net, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=action_spec,
            distribution_class=TanhNormal,
            distribution_kwargs={"low": action_spec.space.low, "high": action_spec.space.high},
            return_log_prob=True,
        )
        return ActorCritic(actor, ValueOperator(critic_net, in_keys=["observation"]))


def _orthogonal(network: nn.Module, last_gain: float) -> None:
    from torch import nn

    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain=last_gain if layer is linears[-1] else sqrt(2))
        nn.init.zeros_(layer.bias)
