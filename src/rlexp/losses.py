"""Objectives: a `LossSpec` describes what is minimised, `build` makes torchrl's loss and advantage modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from rlexp.config import Fraction, Node, NonNegative, Positive, Spec, build_at

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchrl.objectives import LossModule

    from rlexp.normalization import RewardNorm
    from rlexp.policies import ActorCritic


@dataclass(frozen=True)
class Objective:
    """What turns a batch into gradients.

    Attributes:
        loss: ``TensorDict`` of a minibatch -> ``TensorDict`` whose ``loss_*`` entries are summed.
        advantage: writes ``advantage`` and ``value_target`` into a batch ``[num_envs, steps]``.
        keys: the entries of a batch that the loss reads.
        reward_norm: scales the rewards that the advantage sees; None leaves them as they are.
    """

    loss: LossModule
    advantage: nn.Module
    keys: list[str]
    reward_norm: RewardNorm | None


class LossSpec(Spec):
    """Base of all objectives: the loss is a subclass's, the advantage is generalised advantage estimation.

    Builds ``torchrl.objectives.value.GAE`` (Schulman et al. 2016, eq. 16) beside the loss.

    Attributes:
        gamma: discount per agent step.
        lmbda: GAE's lambda.
        average_gae: normalise the advantage over each batch.
        normalize_reward: divide rewards by the running standard deviation of the discounted return.
    """

    gamma: Fraction
    lmbda: Fraction
    average_gae: bool
    normalize_reward: bool

    def build_loss(self, networks: ActorCritic) -> LossModule:
        """The loss over the networks' own parameters.

        Raises:
            ConfigError: the loss cannot be built with these settings.
        """
        raise NotImplementedError

    def build(self, networks: ActorCritic, num_envs: int, device: torch.device) -> Objective:
        """The modules that train ``networks``; they hold the very same parameters."""
        from torchrl.objectives.value import GAE

        from rlexp.normalization import RewardNorm

        loss = self.build_loss(networks).to(device)
        advantage = GAE(
            gamma=self.gamma,
            lmbda=self.lmbda,
            value_network=networks.critic,
            average_gae=self.average_gae,
            vectorized=True,
        ).to(device)
        names = loss.tensor_keys
        # Not the loss's own in_keys: those are for a loss that computes its advantage, from consecutive steps.
        keys = [*networks.actor.in_keys, names.action, names.sample_log_prob, names.advantage, names.value_target]
        reward_norm = RewardNorm(num_envs, self.gamma).to(device) if self.normalize_reward else None
        return Objective(loss, advantage, list(dict.fromkeys(keys)), reward_norm)


class ClipPPO(LossSpec):
    """PPO's clipped surrogate; builds ``torchrl.objectives.ClipPPOLoss`` (Schulman et al. 2017, eq. 7 and 9).

    Attributes:
        clip_epsilon: the ratio's bounds are 1 - epsilon and 1 + epsilon.
        entropy_coeff: weight of the entropy bonus (c2 in eq. 9); 0 leaves the entropy uncomputed in the loss.
        critic_coeff: weight of the critic's loss (c1 in eq. 9).
        loss_critic_type: distance between value and target.
        normalize_advantage: to mean 0 and standard deviation 1 over each minibatch.
    """

    builds = ("torchrl.objectives.ClipPPOLoss", "torchrl.objectives.value.GAE")

    clip_epsilon: Positive
    entropy_coeff: NonNegative
    critic_coeff: NonNegative
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]
    normalize_advantage: bool

    def build_loss(self, networks: ActorCritic) -> LossModule:
        """The loss of torchrl."""
        from torchrl.objectives import ClipPPOLoss

        return ClipPPOLoss(
            networks.actor,
            networks.critic,
            clip_epsilon=self.clip_epsilon,
            entropy_bonus=self.entropy_coeff > 0,
            entropy_coeff=self.entropy_coeff,
            critic_coeff=self.critic_coeff,
            loss_critic_type=self.loss_critic_type,
            normalize_advantage=self.normalize_advantage,
            # The networks stay plain modules (their functional copies double the time of a step), and the explained
            # variance is the batch's, computed once.
            functional=False,
            log_explained_variance=False,
        )


class AnyLoss(LossSpec):
    """Any ``torchrl.objectives.LossModule`` that takes an actor, a critic and an advantage.

    Attributes:
        loss_module: the loss; it is called with ``actor_network`` and ``critic_network`` beside its own arguments.
    """

    builds = ("torchrl.objectives.value.GAE",)

    loss_module: Node

    def build_loss(self, networks: ActorCritic) -> LossModule:
        """The loss that the config names."""
        build = partial(self.loss_module.build, actor_network=networks.actor, critic_network=networks.critic)
        return build_at("loss.loss_module", build)
