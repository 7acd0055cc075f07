"""Objectives: a `LossSpec` describes what is minimised, `build` makes torchrl's loss and advantage modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlexp.config import Fraction, NonNegative, Positive, Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rlexp.normalization import RewardNorm
    from rlexp.policies import ActorCritic
    from rlexp.ppo import LeanClipPPOLoss


@dataclass(frozen=True)
class Objective:
    """What turns a batch into gradients.

    Attributes:
        loss: minibatch -> a mapping whose ``loss_*`` entries are summed.
        advantage: writes ``advantage``, ``value_target`` and ``state_value`` into a batch ``[num_envs, steps]``.
        reward_norm: scales the rewards that the advantage sees; None leaves them as they are.
    """

    loss: LeanClipPPOLoss
    advantage: nn.Module
    reward_norm: RewardNorm | None


class LossSpec(Spec):
    """Base of all objectives."""

    def build(self, networks: ActorCritic, num_envs: int, device: torch.device) -> Objective:
        """The modules that train ``networks``; they hold the very same parameters."""
        raise NotImplementedError


class ClipPPO(LossSpec):
    """PPO's clipped surrogate with generalised advantage estimation.

    Builds `rlexp.ppo.LeanClipPPOLoss`, a ``torchrl.objectives.ClipPPOLoss`` (Schulman et al. 2017, eq. 7 and 9), and
    `rlexp.ppo.GeneralizedAdvantage`, which is ``torchrl.objectives.value.GAE`` (Schulman et al. 2016, eq. 16).

    Attributes:
        clip_epsilon: the ratio's bounds are 1 - epsilon and 1 + epsilon.
        entropy_coeff: weight of the entropy bonus (c2 in eq. 9); 0 leaves the entropy uncomputed in the loss.
        critic_coeff: weight of the critic's loss (c1 in eq. 9).
        loss_critic_type: distance between value and target.
        normalize_advantage: to mean 0 and standard deviation 1 over each minibatch.
        gamma: discount per agent step.
        lmbda: GAE's lambda.
        average_gae: normalise the advantage over each batch.
        normalize_reward: divide rewards by the running standard deviation of the discounted return.
    """

    clip_epsilon: Positive
    entropy_coeff: NonNegative
    critic_coeff: NonNegative
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]
    normalize_advantage: bool
    gamma: Fraction
    lmbda: Fraction
    average_gae: bool
    normalize_reward: bool

    def build(self, networks: ActorCritic, num_envs: int, device: torch.device) -> Objective:
        """The loss and the advantage over the given networks."""
        from rlexp.normalization import RewardNorm
        from rlexp.ppo import GeneralizedAdvantage, LeanClipPPOLoss

        loss = LeanClipPPOLoss(
            networks.actor,
            networks.critic,
            clip_epsilon=self.clip_epsilon,
            entropy_bonus=self.entropy_coeff > 0,
            entropy_coeff=self.entropy_coeff,
            critic_coeff=self.critic_coeff,
            loss_critic_type=self.loss_critic_type,
            normalize_advantage=self.normalize_advantage,
        )
        advantage = GeneralizedAdvantage(networks.critic, self.gamma, self.lmbda, average=self.average_gae)
        reward_norm = RewardNorm(num_envs, self.gamma) if self.normalize_reward else None
        return Objective(loss.to(device), advantage.to(device), reward_norm)
