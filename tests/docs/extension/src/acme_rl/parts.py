"""A policy with a schema of its own, and a loss."""

from __future__ import annotations

from typing import Any

from rlexp.config import Node, Positive
from rlexp.losses import ClipPPOConfig
from rlexp.losses.module import Loss
from rlexp.policies import ActorCritic, PolicyConfig, TanhNormalConfig


class LinearPolicy(PolicyConfig):
    """Linear actor and critic.

    Attributes:
        scale_lb: smallest standard deviation.
    """

    scale_lb: Positive

    def build(self, env: Any, device: Any) -> ActorCritic:
        return TanhNormalConfig(
            num_cells=[1],
            activation_class="Tanh",
            actor_network=Node(target="acme_rl.networks.Linear", arguments={}),
            critic_network=Node(target="acme_rl.networks.Linear", arguments={}),
            critic_num_cells=None,
            critic_activation_class=None,
            state_independent_scale=True,
            scale_mapping="exp",
            scale_init=None,
            scale_lb=self.scale_lb,
            scale_ub=None,
            layer_norm=False,
            shared=False,
            orthogonal=False,
            last_layer_gain=1.0,
            actor_keys=None,
            critic_keys=None,
            encoders={},
        ).build(env, device)


class HalvedPPO(ClipPPOConfig):
    """PPO with half the weight on the critic."""

    def build(self, networks: ActorCritic) -> Loss:
        return ClipPPOConfig.build(self.model_copy(update={"critic_coeff": self.critic_coeff / 2}), networks)
