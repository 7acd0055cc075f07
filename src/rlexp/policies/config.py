"""Settings of the policies: a trunk, a distribution over actions, and a critic; imports torch only to build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlexp.config import Config, ConfigError, Count, Node, NonNegative, Positive, Problem, build_at, did_you_mean
from rlexp.envs.actions import ACTION_MASK
from rlexp.policies.activations import ACTIVATIONS
from rlexp.policies.actor_critic import ActorCritic
from rlexp.policies.spaces import cannot_act, described, distributions_for

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase
    from torch import nn
    from torchrl.envs import EnvBase
    from torchrl.modules import ProbabilisticActor

    from rlexp.policies.heads import Head, Scale
    from rlexp.policies.inputs import Inputs, Specs
    from rlexp.policies.recurrent import RecurrentCore


class PolicyConfig(Config):
    """Base of all policies."""

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
        layer_norm: normalise what each nonlinearity of the fully connected layers reads (Ba et al. 2016).
        shared: one trunk for actor and critic, instead of one each.
        orthogonal: orthogonal weights of gain sqrt(2) and zero biases, instead of torch's default.
        last_layer_gain: with ``orthogonal``, gain of the actor's last layer; small makes all first actions alike.
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

        head = self.head(env, device)
        actor_inputs, critic_inputs = self.inputs(env, "policy.shared=true" if self.shared else None)
        body = self.body(actor_inputs, "actor", head.outputs)
        others: nn.Module = (
            nn.Linear(int(self.num_cells[-1]), 1) if self.shared else self.body(critic_inputs, "critic", 1)
        )
        if self.orthogonal:
            orthogonal_(actor_inputs.reading(body), last_gain=self.last_layer_gain)
            orthogonal_(others if self.shared else critic_inputs.reading(others), last_gain=1.0)
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
        from rlexp.policies.inputs import chosen, inputs

        actor, critic = chosen(env, self.actor_keys, self.critic_keys, self.encoders, alike)
        self.check_observation(env, actor, critic)
        read = partial(inputs, nodes=self.encoders, convolutions=self.convolutions())
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


class MLPConfig(NetworkConfig):
    """Base of the policies with a ``torchrl.modules.MLP`` as the trunk.

    Attributes:
        actor_network: a network in place of the actor's MLP; called with ``in_features`` and ``out_features``.
        critic_network: the same for the critic.
        critic_num_cells: widths of the critic's own hidden layers; None is ``num_cells``.
        critic_activation_class: the nonlinearity after each of them; None is ``activation_class``.
    """

    builds = ("torchrl.modules.MLP",)
    distribution: ClassVar[str]

    actor_network: Node | None
    critic_network: Node | None
    critic_num_cells: Annotated[list[Count], Field(min_length=1)] | None
    critic_activation_class: str | None

    def problems(self) -> Iterator[Problem]:
        """A network of one's own has no trunk to share, and one that is shared has one form."""
        yield from super().problems()
        for name in ("actor_network", "critic_network"):
            if self.shared and getattr(self, name) is not None:
                yield Problem("shared", f"must be false with a network of your own ({name}).", "true")
        if self.layer_norm and self.actor_network is not None and self.critic_network is not None:
            yield Problem("layer_norm", "has no layers to normalise between: both networks are your own.", "true")
        for name in ("critic_num_cells", "critic_activation_class"):
            value = getattr(self, name)
            if value is not None and (self.shared or self.critic_network is not None):
                other = "policy.shared=true" if self.shared else "policy.critic_network"
                yield Problem(name, f"has no layers to describe with {other}.", str(value))
        if self.critic_activation_class not in (None, *ACTIVATIONS):
            hint = did_you_mean(str(self.critic_activation_class), ACTIVATIONS)
            message = f"is no nonlinearity of torch.nn. {hint}"
            yield Problem("critic_activation_class", message, self.critic_activation_class)

    def choice(self, fitting: list[str]) -> str:
        """The option's own."""
        return self.distribution

    def trunk(self, inputs: Inputs) -> tuple[nn.Module, int]:
        """The MLP's hidden layers."""
        return self.perceptron(inputs.shape.numel()), int(self.num_cells[-1])

    def body(self, inputs: Inputs, which: Literal["actor", "critic"], outputs: int) -> nn.Module:
        """The MLP, or the network that the config names."""
        key = f"{which}_network"
        node: Node | None = getattr(self, key)
        if node is None:
            own_layers = {
                "num_cells": self.critic_num_cells or self.num_cells,
                "activation_class": self.critic_activation_class or self.activation_class,
            }
            form = self if which == "actor" else self.model_copy(update=own_layers)
            return super(MLPConfig, form).body(inputs, which, outputs)
        build = partial(node.build, in_features=inputs.shape.numel(), out_features=outputs)
        own: nn.Module = build_at(f"policy.{key}", build)
        return own

    def check_observation(self, env: EnvBase, actor: Specs, critic: Specs) -> None:
        """Networks of one's own may read what they like."""
        if self.actor_network is None or self.critic_network is None:
            super().check_observation(env, actor, critic)


class GaussianConfig(Config):
    """Settings of a Gaussian.

    Attributes:
        state_independent_scale: one learned standard deviation per action dimension, instead of a network output.
        scale_mapping: torchrl's name of the map from a parameter to a standard deviation.
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
        """The bounds of the standard deviation enclose that of the start."""
        yield from super().problems()
        if self.scale_ub is not None and self.scale_ub <= self.scale_lb:
            yield Problem("scale_ub", f"must be above policy.scale_lb, {self.scale_lb:g}.", f"{self.scale_ub:g}")
        elif self.scale_ub is not None and self.scale_init is not None and self.scale_init > self.scale_ub:
            yield Problem("scale_init", f"is above policy.scale_ub, {self.scale_ub:g}.", f"{self.scale_init:g}")

    def scale(self) -> Scale | None:
        """How the standard deviation comes about."""
        from rlexp.policies.heads import Scale

        return Scale(self.state_independent_scale, self.scale_mapping, self.scale_lb, self.scale_ub, self.scale_init)


class TanhNormalConfig(GaussianConfig, MLPConfig):
    """A Gaussian squashed into the action bounds (Haarnoja et al. 2018, appendix C): ``torchrl.modules.TanhNormal``."""

    distribution = "tanh_normal"


class NormalConfig(GaussianConfig, MLPConfig):
    """A Gaussian without bounds (Schulman et al. 2017): ``torchrl.modules.IndependentNormal``.

    The environment, and nothing before it, clips actions to its bounds: log-probabilities, and what a batch holds as
    ``action``, are of the action before the clipping.
    """

    distribution = "normal"


class CategoricalConfig(MLPConfig):
    """One of n actions: ``torch.distributions.Categorical`` over the network's logits; or several such choices."""

    distribution = "categorical"


class BetaConfig(MLPConfig):
    """Beta distributions over the action bounds (Chou et al. 2017): `rlexp.policies.heads.BoundedBeta`."""

    distribution = "beta"


class CNNConfig(GaussianConfig, NetworkConfig):
    """Convolutions over images (Mnih et al. 2015): ``torchrl.modules.ConvNet``, and fully connected layers on it.

    Whole numbers are colours: they are divided by 255. Floating-point images are read as they are.

    Attributes:
        channels: channels that each convolution gives.
        kernel_sizes: width and height of each one's kernel.
        strides: steps of each one's kernel.
        distribution: over actions; ``auto`` takes categorical, tanh_normal or normal, whichever fits first.
    """

    observation_dims = 3
    builds = ("torchrl.modules.ConvNet",)

    channels: Annotated[list[Count], Field(min_length=1)]
    kernel_sizes: list[Count]
    strides: list[Count]
    distribution: Literal["auto", "tanh_normal", "normal", "beta", "categorical"]

    def problems(self) -> Iterator[Problem]:
        """As many kernels and strides as convolutions."""
        yield from super().problems()
        for name in ("kernel_sizes", "strides"):
            if len(values := getattr(self, name)) != len(self.channels):
                message = f"needs one entry for each of policy.channels, which are {len(self.channels)}."
                yield Problem(name, message, str(values))

    def choice(self, fitting: list[str]) -> str:
        """The one named, or the first that fits."""
        return fitting[0] if self.distribution == "auto" and fitting else self.distribution

    def convolutions(self) -> Callable[[torch.Size], nn.Module]:
        """The convolutions that the settings describe."""
        from rlexp.policies.encoders import CNN

        return lambda shape: CNN(shape, self.channels, self.kernel_sizes, self.strides, self.activation_class)

    def check_observation(self, env: EnvBase, actor: Specs, critic: Specs) -> None:
        """Refuse observations without an image, and images that the convolutions cannot read.

        Raises:
            ConfigError: there is no image, it is too small, or its channels are last.
        """
        from rlexp.policies.encoders import check_image

        plain = {key: spec.shape for key, spec in {**actor, **critic}.items() if key not in self.encoders}
        images = {key: shape for key, shape in plain.items() if len(shape) == 3}
        if plain and not images and not self.encoders:
            key, shape = next(iter(plain.items()))
            kind = "images [channels, height, width]"
            raise cannot_act(env, f"its network reads {kind}, and this environment's {key} has shape {list(shape)}")
        for key, shape in images.items():
            try:
                check_image(shape, self.kernel_sizes, self.strides, key)
            except ValueError as error:
                raise ConfigError([Problem("policy", f"{error}.")]) from error

    def trunk(self, inputs: Inputs) -> tuple[nn.Module, int]:
        """Convolutions, where a lone image is read, and fully connected layers."""
        import torch
        from torch import nn

        width = int(self.num_cells[-1])
        if inputs.encoders or len(inputs.shape) != 3:
            return self.perceptron(inputs.shape.numel()), width
        convolutions = self.convolutions()(inputs.shape)
        features = convolutions(torch.zeros(1, *inputs.shape)).shape[-1]
        return nn.Sequential(convolutions, self.perceptron(features)), width


class RecurrentConfig(GaussianConfig, NetworkConfig):
    """Base of the policies with a memory (Hausknecht and Stone 2015; Kapturowski et al. 2019, stored state).

    An MLP reads the observation, a recurrent layer what it gives, and linear layers what that gives. What is remembered
    is carried from step to step and from batch to batch, and forgotten where an episode ends. Gradients flow through
    sequences of consecutive steps, each from the state that was stored at its first step. The critic has the same
    memory, or one of its own.

    Attributes:
        hidden_size: features of the recurrent layer.
        sequence_length: consecutive steps that gradients flow through, and that a minibatch keeps together.
        distribution: over actions; ``auto`` takes categorical, tanh_normal or normal, whichever fits first.
    """

    recurrent_layer: ClassVar[Literal["GRU", "LSTM"]]

    hidden_size: Count
    sequence_length: Count
    distribution: Literal["auto", "tanh_normal", "normal", "categorical"]

    def choice(self, fitting: list[str]) -> str:
        """The one named, or the first that fits."""
        return fitting[0] if self.distribution == "auto" and fitting else self.distribution

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Actor and critic with one memory or two."""
        from tensordict.nn import TensorDictModule
        from torch import nn
        from torchrl.modules import ValueOperator

        from rlexp.policies.recurrent import CARRIED, STATE, RecurrentActor, RecurrentCritic

        head = self.head(env, device)
        # The actor carries the critic's memory on as well, and so reads all that the critic reads.
        actor_inputs, critic_inputs = self.inputs(env, "a recurrent policy")
        width, length = int(self.hidden_size), int(self.sequence_length)
        core = self._core(actor_inputs)
        output = nn.Linear(width, head.outputs)
        critic_core = core if self.shared else self._core(critic_inputs)
        value_output = nn.Linear(width, 1)
        if self.orthogonal:
            orthogonal_(nn.Sequential(core, output), last_gain=self.last_layer_gain)
            orthogonal_(value_output if self.shared else nn.Sequential(critic_core, value_output), last_gain=1.0)
        if head.bias is not None:
            set_bias(output, head.bias)
        network = RecurrentActor(core, nn.Sequential(output, head.module), None if self.shared else critic_core, length)
        read = [*actor_inputs.keys, *CARRIED]
        module = TensorDictModule(network.to(device), in_keys=read, out_keys=[*head.keys, ("next", STATE)])
        values = RecurrentCritic(critic_core, value_output, length, shared=self.shared)
        critic = ValueOperator(values.to(device), in_keys=read)
        return ActorCritic(probabilistic_actor(module, head, env, device), critic, length)

    def _core(self, inputs: Inputs) -> RecurrentCore:
        from torch import nn

        from rlexp.policies.recurrent import RecurrentCore

        layer = getattr(nn, self.recurrent_layer)
        rnn = layer(int(self.num_cells[-1]), int(self.hidden_size), batch_first=True)
        return RecurrentCore(inputs.reading(self.perceptron(inputs.shape.numel())), rnn)


class GRUConfig(RecurrentConfig):
    """A gated recurrent unit (Cho et al. 2014)."""

    recurrent_layer = "GRU"


class LSTMConfig(RecurrentConfig):
    """A long short-term memory (Hochreiter and Schmidhuber 1997)."""

    recurrent_layer = "LSTM"


def probabilistic_actor(
    module: TensorDictModuleBase, head: Head, env: EnvBase, device: torch.device
) -> ProbabilisticActor:
    """The actor over a network that writes the parameters of ``head``'s distribution."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import ProbabilisticActor

    from rlexp.policies.heads import MaskedLogits

    spec = env.action_spec_unbatched.to(device)
    if env.observation_spec_unbatched.get(ACTION_MASK, None) is not None:
        masked = TensorDictModule(MaskedLogits(spec).to(device), in_keys=["logits", ACTION_MASK], out_keys=["logits"])
        module = TensorDictSequential(module, masked)
    return ProbabilisticActor(
        module,
        in_keys=head.keys,
        spec=spec,
        distribution_class=head.distribution_class,
        distribution_kwargs=head.distribution_kwargs,
        return_log_prob=True,
    )


def orthogonal_(network: nn.Module, last_gain: float) -> None:
    """Orthogonal weights of gain sqrt(2), 1 in a recurrent layer and ``last_gain`` at the end; zero biases."""
    from torch import nn

    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.RNNBase)]
    for layer in layers:
        gain = last_gain if layer is layers[-1] else 1.0 if isinstance(layer, nn.RNNBase) else sqrt(2)
        for name, parameter in layer.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter, gain=gain)
            else:
                nn.init.zeros_(parameter)


def set_bias(network: nn.Module, bias: torch.Tensor) -> None:
    """Set the bias of a network's last linear layer.

    Raises:
        ConfigError: it has none of that size.
    """
    import torch
    from torch import nn

    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1].bias is None or layers[-1].bias.shape != bias.shape:
        message = "needs a network that ends in a linear layer with a bias, or policy.state_independent_scale=true."
        raise ConfigError([Problem("policy.scale_init", message)])
    with torch.no_grad():
        layers[-1].bias.copy_(bias)
