"""A policy with a schema of its own, and a loss."""

from __future__ import annotations

from typing import Any

from rlexp.config import Node, Positive
from rlexp.losses import AnyLoss
from rlexp.policies import ActorCritic, PolicySpec, TanhNormalPolicy


class LinearPolicy(PolicySpec):
    """Linear actor and critic.

    Attributes:
        scale_lb: smallest standard deviation.
    """

    scale_lb: Positive

    def build(self, env: Any, device: Any) -> ActorCritic:
        return TanhNormalPolicy(
            num_cells=[1],
            activation_class="Tanh",
            actor_network=Node(target="acme_rl.networks.Linear", arguments={}),
            critic_network=Node(target="acme_rl.networks.Linear", arguments={}),
            state_independent_scale=True,
            scale_mapping="exp",
            scale_lb=self.scale_lb,
            orthogonal=False,
            last_layer_gain=1.0,
        ).build(env, device)


class HalvedLoss(AnyLoss):
    """Any loss with half the weight on the critic."""

    def build_loss(self, networks: ActorCritic) -> Any:
        loss = super().build_loss(networks)
        loss.critic_coeff.mul_(0.5)
        return loss
