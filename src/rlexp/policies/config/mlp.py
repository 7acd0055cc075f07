"""Settings of the policies whose trunk is a perceptron."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rlexp.config import Count, Node, Problem, build_at, did_you_mean
from rlexp.policies.activations import ACTIVATIONS
from rlexp.policies.config.network import GaussianConfig, NetworkConfig

if TYPE_CHECKING:
    from torch import nn
    from torchrl.envs import EnvBase

    from rlexp.policies.inputs import Inputs, Specs


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
        from rlexp.policies.building import own_network

        build = partial(node.build, in_features=inputs.shape.numel(), out_features=outputs)
        return own_network(f"policy.{key}", build_at(f"policy.{key}", build))

    def own_parts(self, inputs: Inputs, body: nn.Module, which: Literal["actor", "critic"]) -> list[nn.Module]:
        """Own encoders, and the network in place of the MLP."""
        own = getattr(self, f"{which}_network") is not None
        return [*super().own_parts(inputs, body, which), *([body] if own else [])]

    def check_observation(self, env: EnvBase, actor: Specs, critic: Specs) -> None:
        """Networks of one's own may read what they like."""
        if self.actor_network is None or self.critic_network is None:
            super().check_observation(env, actor, critic)


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
