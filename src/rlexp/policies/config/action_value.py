"""Settings of the policy with an action-value critic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlexp.config import ConfigError, Count, Problem
from rlexp.policies.actor_critic import ActorCritic
from rlexp.policies.config.mlp import TanhNormalConfig
from rlexp.policies.spaces import described, distributions_for

if TYPE_CHECKING:
    import torch
    from torchrl.envs import EnvBase


class ActionValueConfig(TanhNormalConfig):
    """A squashed Gaussian, with an action-value critic: `rlexp.policies.action_values.ActionValue`.

    Attributes:
        v_min: smallest value that the critic can give, in units of the rewards as the loss scales them.
        v_max: largest.
        num_bins: bins between them.
    """

    has_action_values = True

    v_min: float
    v_max: float
    num_bins: Annotated[Count, Field(ge=2)]

    def problems(self) -> Iterator[Problem]:
        """A range of values, and a critic that rlexp makes."""
        yield from super().problems()
        if self.v_min >= self.v_max:
            yield Problem("v_max", f"must be above policy.v_min, {self.v_min:g}.", f"{self.v_max:g}")
        for name, unset in (("shared", False), ("critic_network", None)):
            if (value := getattr(self, name)) != unset:
                yield Problem(name, "cannot be with an action-value critic, which has layers of its own.", str(value))

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """The actor, and a critic of its actions.

        Raises:
            ConfigError: the actions are not continuous and bounded, or as of `NetworkConfig`.
        """
        from torch import nn
        from torchrl.modules import ValueOperator

        from rlexp.policies.action_values import ActionValue, Bins
        from rlexp.policies.building import orthogonal_

        spec = env.action_spec_unbatched
        if self.distribution not in distributions_for(spec):
            message = (
                f"needs continuous, bounded actions, and this environment's are {described(spec)}: use another loss."
            )
            raise ConfigError([Problem("loss", message, "reppo")])
        actor = super().build(env, device).actor
        _, inputs = self.inputs(env, None)
        space = spec.to(device).space
        widths = [int(width) for width in self.critic_num_cells or self.num_cells]
        layers = {"activation_class": self.critic_activation_class or self.activation_class}
        trunk = self.model_copy(update={**layers, "num_cells": widths})
        layer = self.model_copy(update={**layers, "num_cells": widths[-1:]})
        critic = ActionValue(
            inputs.reading(nn.Identity()),
            trunk.perceptron(inputs.shape.numel() + len(space.low)),
            nn.Sequential(layer.perceptron(widths[-1]), nn.Linear(widths[-1], int(self.num_bins))),
            nn.Sequential(layer.perceptron(widths[-1]), nn.Linear(widths[-1], widths[-1])),
            Bins(self.v_min, self.v_max, int(self.num_bins)),
            (space.low, space.high),
        )
        if self.orthogonal:
            orthogonal_(critic.reading, 2**0.5, self.own_parts(inputs, critic, "critic"))
            for network, gain in ((critic.trunk, 2**0.5), (critic.value_head, 1.0), (critic.predictor, 1.0)):
                orthogonal_(network, gain)
        return ActorCritic(actor, ValueOperator(critic.to(device), in_keys=[*inputs.keys, "action"]))
