"""What every shipped policy has: encoders of entries, a trunk, and linear layers on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlexp.config import Config, Count, Node, NonNegative, Positive, Problem, did_you_mean
from rlexp.policies.activations import ACTIVATIONS
from rlexp.policies.actor_critic import ActorCritic
from rlexp.policies.spaces import cannot_act, described, distributions_for

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchrl.envs import EnvBase

    from rlexp.policies.heads import Head, Scale
    from rlexp.policies.inputs import Inputs, Specs


_SCALE_MAPPINGS = ("biased_softplus", "exp", "expln", "none", "relu", "softplus")
# With the standard deviation that it makes of 0, and perhaps the smallest that it gives.
_BIASED = re.compile(r"biased_softplus(_(\d+\.?\d*|\.\d+)(e-?\d+)?){1,2}", re.ASCII)


def is_shipped(node: Node) -> bool:
    """Whether a network that the config names is one of rlexp's."""
    return node.target.split(".")[0] == "rlexp"


class PolicyConfig(Config):
    """Base of all policies."""

    recurrent: ClassVar[bool] = False
    """Whether it carries a state from step to step."""
    has_action_values: ClassVar[bool] = False
    """Whether its critic is of actions, and not of states alone."""

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Fresh networks that fit the environment's specs, on ``device``.

        Raises:
            ConfigError: the policy cannot act in this environment.
        """
        raise NotImplementedError


class NetworkConfig(PolicyConfig):
    """Base of the shipped policies: encoders of entries, a trunk, linear layers on it, and a distribution.

    Builds ``torchrl.modules.ProbabilisticActor`` and ``torchrl.modules.ValueOperator``.

    Attributes:
        num_cells: width of each fully connected hidden layer.
        activation_class: name of the nonlinearity after each hidden layer, one of torch.nn's.
        layer_norm: layer normalisation before each nonlinearity of the fully connected layers (Ba et al. 2016).
        shared: one trunk for actor and critic, instead of one each.
        orthogonal: orthogonal weights of gain sqrt(2) and zero biases, instead of torch's default; not in networks and
            encoders of one's own, which keep the weights that they are made with.
        last_layer_gain: with ``orthogonal``, gain of the actor's last layer; a small one makes initial actions alike.
        actor_keys: entries of the observation that the actor reads; None is all.
        critic_keys: entries that the critic reads; None is all.
        encoders: networks from entries to features, by the names of the entries; called with ``shape``. A vector
            without one goes to the trunk as it is.
    """

    observation_dims: ClassVar[int] = 1

    num_cells: list[Count]
    activation_class: str
    layer_norm: bool
    shared: bool
    orthogonal: bool
    last_layer_gain: NonNegative
    actor_keys: Annotated[list[str], Field(min_length=1)] | None
    critic_keys: Annotated[list[str], Field(min_length=1)] | None
    encoders: dict[str, Node]

    def problems(self) -> Iterator[Problem]:
        """At least one layer, and a nonlinearity that torch has."""
        if self.activation_class not in ACTIVATIONS:
            message = f"is no nonlinearity of torch.nn. {did_you_mean(self.activation_class, ACTIVATIONS)}"
            yield Problem("activation_class", message, self.activation_class)
        if not self.num_cells:
            yield Problem("num_cells", "needs the width of at least one hidden layer, e.g. [64,64].", "[]")

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Actor and critic for the environment's observations and actions."""
        from tensordict.nn import TensorDictModule
        from torch import nn
        from torchrl.modules import ValueOperator

        from rlexp.policies.building import orthogonal_, probabilistic_actor, set_bias

        head = self.head(env, device)
        actor_inputs, critic_inputs = self.inputs(env, "policy.shared=true" if self.shared else None)
        body = self.body(actor_inputs, "actor", head.outputs)
        others: nn.Module = (
            nn.Linear(int(self.num_cells[-1]), 1) if self.shared else self.body(critic_inputs, "critic", 1)
        )
        if self.orthogonal:
            own = self.own_parts(actor_inputs, body, "actor")
            orthogonal_(actor_inputs.reading(body), self.last_layer_gain, own)
            own = self.own_parts(critic_inputs, others, "critic")
            orthogonal_(others if self.shared else critic_inputs.reading(others), 1.0, own)
        if head.bias is not None:
            set_bias(body, head.bias)
        values = nn.Sequential(next(body.children()), others) if self.shared else others
        network = actor_inputs.reading(nn.Sequential(body, head.module)).to(device)
        module = TensorDictModule(network, in_keys=actor_inputs.keys, out_keys=head.keys)
        critic = ValueOperator(critic_inputs.reading(values).to(device), in_keys=critic_inputs.keys)
        return ActorCritic(probabilistic_actor(module, head, env, device), critic)

    def inputs(self, env: EnvBase, alike: str | None) -> tuple[Inputs, Inputs]:
        """What actor and critic read; through the same encoders where they share their layers.

        Args:
            env: the environment.
            alike: why both must read the same entries; None where they need not.

        Raises:
            ConfigError: the environment has no such entries, or this policy's networks cannot read them.
        """
        from rlexp.policies.inputs import check_colours, chosen, inputs

        actor, critic = chosen(env, self.actor_keys, self.critic_keys, self.encoders, alike)
        self.check_observation(env, actor, critic)
        convolutions = self.convolutions()
        check_colours(env, {**actor, **critic}, self.encoders, by_default=convolutions is not None)
        read = partial(inputs, nodes=self.encoders, convolutions=convolutions)
        actor_inputs = read(actor)
        return actor_inputs, actor_inputs if self.shared else read(critic)

    def convolutions(self) -> Callable[[torch.Size], nn.Module] | None:
        """Makes the encoder of an image that none is named for; None where this policy reads no images by itself."""
        return None

    def trunk(self, inputs: Inputs) -> tuple[nn.Module, int]:
        """A new network from what is read to features, and how many they are."""
        raise NotImplementedError

    def body(self, inputs: Inputs, which: Literal["actor", "critic"], outputs: int) -> nn.Module:
        """A new trunk and a linear layer on it."""
        from torch import nn

        trunk, width = self.trunk(inputs)
        return nn.Sequential(trunk, nn.Linear(width, outputs))

    def own_parts(self, inputs: Inputs, body: nn.Module, which: Literal["actor", "critic"]) -> list[nn.Module]:
        """What the config names and rlexp has not written: it starts with the weights that its constructor gives it."""
        named = zip(inputs.keys, inputs.encoders, strict=False)  # a lone entry may have no encoder
        return [encoder for key, encoder in named if key in self.encoders and not is_shipped(self.encoders[key])]

    def perceptron(self, in_features: int) -> nn.Module:
        """The fully connected hidden layers, each with its nonlinearity."""
        from torch import nn
        from torchrl.modules import MLP

        *hidden, last = (int(width) for width in self.num_cells)
        norm: dict[str, Any] = {}
        if self.layer_norm:
            norm = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": n} for n in (*hidden, last)]}
        mlp: nn.Module = MLP(
            in_features=in_features,
            out_features=last,
            num_cells=hidden,
            activation_class=getattr(nn, self.activation_class),
            activate_last_layer=True,
            **norm,
        )
        return mlp

    def choice(self, fitting: list[str]) -> str:
        """The distribution that this policy takes, of those that fit the actions; any other is refused."""
        raise NotImplementedError

    def scale(self) -> Scale | None:
        """How a Gaussian gets its standard deviation; None where there is no Gaussian."""
        return None

    def head(self, env: EnvBase, device: torch.device) -> Head:
        """What makes actions out of the trunk's features.

        Raises:
            ConfigError: the distribution is none over this environment's actions.
        """
        from rlexp.policies.heads import head

        spec = env.action_spec_unbatched.to(device)
        fitting = distributions_for(spec)
        kind = self.choice(fitting)
        if kind not in fitting:
            raise cannot_act(env, f"{kind} is no distribution over this environment's actions, {described(spec)}")
        return head(kind, spec, self.scale())

    def check_observation(self, env: EnvBase, actor: Specs, critic: Specs) -> None:
        """Refuse entries that a trunk which reads nothing else cannot read.

        Raises:
            ConfigError: one is no vector; of a ``cnn``, not an image.
        """
        for specs in (actor, critic):
            for key, spec in specs.items():
                if len(specs) == 1 and key not in self.encoders and len(spec.shape) > 1:
                    shape = list(spec.shape)
                    raise cannot_act(env, f"its network reads vectors, and this environment's {key} has shape {shape}")


class GaussianConfig(Config):
    """Settings of a Gaussian.

    Attributes:
        state_independent_scale: one learned standard deviation per action dimension, instead of a network output.
        scale_mapping: torchrl's name of the map from a parameter to a standard deviation: ``exp``, ``expln``, ``none``,
            ``softplus``, ``biased_softplus_1.0``, or ``relu``, which needs ``scale_init`` where the deviation is one
            learned number, since its derivative at 0 is 0.
        scale_init: standard deviation that training starts with; None is what the mapping makes of 0 (``exp``: 1).
        scale_lb: smallest standard deviation.
        scale_ub: largest standard deviation; None is any.
    """

    state_independent_scale: bool
    scale_mapping: str
    scale_init: Positive | None
    scale_lb: Positive
    scale_ub: Positive | None

    def problems(self) -> Iterator[Problem]:
        """A mapping that torchrl has and that can be trained, and bounds that enclose the deviation of the start."""
        yield from super().problems()
        if self.scale_mapping not in _SCALE_MAPPINGS and not _BIASED.fullmatch(self.scale_mapping):
            message = f"is no mapping of torchrl's. {did_you_mean(self.scale_mapping, _SCALE_MAPPINGS)}"
            yield Problem("scale_mapping", message, self.scale_mapping)
        if self.scale_mapping == "relu" and self.scale_init is None and self.state_independent_scale:
            message = "would keep the standard deviation where it starts, its derivative at 0 being 0: give "
            yield Problem("scale_mapping", f"{message}policy.scale_init.", "relu")
        if self.scale_ub is not None and self.scale_ub <= self.scale_lb:
            yield Problem("scale_ub", f"must be above policy.scale_lb, {self.scale_lb:g}.", f"{self.scale_ub:g}")
        elif self.scale_init is not None and self.scale_ub is not None and self.scale_init > self.scale_ub:
            yield Problem("scale_init", f"is above policy.scale_ub, {self.scale_ub:g}.", f"{self.scale_init:g}")
        elif self.scale_init is not None and self.scale_init < self.scale_lb:
            yield Problem("scale_init", f"is below policy.scale_lb, {self.scale_lb:g}.", f"{self.scale_init:g}")

    def scale(self) -> Scale | None:
        """How the standard deviation comes about."""
        from rlexp.policies.heads import Scale

        return Scale(self.state_independent_scale, self.scale_mapping, self.scale_lb, self.scale_ub, self.scale_init)
