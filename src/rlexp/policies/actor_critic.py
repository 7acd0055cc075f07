"""The two networks of an agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torchrl.modules import ProbabilisticActor, ValueOperator


@dataclass(frozen=True)
class ActorCritic:
    """The two networks that a run trains; they may share a trunk.

    Attributes:
        actor: reads entries of the observation ``[..., *entry]``, writes ``action`` and ``action_log_prob``.
        critic: reads entries of the observation, writes ``state_value`` ``[..., 1]``; that of ``loss=reppo`` also reads
            the action, and writes ``state_action_value``.
        sequence_length: consecutive steps of a training sequence; 1 for feed-forward networks.
    """

    actor: ProbabilisticActor
    critic: ValueOperator
    sequence_length: int = 1

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of both, each once."""
        actor, critic = self.split_parameters()
        return [*actor, *critic]

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the actor's distribution, a shared trunk included, and the critic's remaining ones.

        What is frozen (``requires_grad_(False)``) is left out.
        """
        from rlexp.policies.recurrent import recurrent_network

        actor, network = dict.fromkeys(self.actor.parameters()), recurrent_network(self.actor)
        if network is not None and network.critic_core is not None:
            for parameter in network.critic_core.parameters():  # the critic's, whose state the actor advances
                del actor[parameter]
        critic = [p for p in dict.fromkeys(self.critic.parameters()) if p not in actor]
        return [p for p in actor if p.requires_grad], [p for p in critic if p.requires_grad]
