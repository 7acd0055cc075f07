"""Objectives: a `LossSpec` describes what is minimised, `build` makes torchrl's loss and advantage modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, Self

from rlexp.config import Fraction, Node, NonNegative, Positive, Spec, build_at

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDictBase
    from torch import Tensor

    from rlexp.losses.ppo import GeneralizedAdvantage
    from rlexp.normalization import RewardNorm
    from rlexp.policies import ActorCritic


class MinibatchLoss(Protocol):
    """What the trainer asks of a loss."""

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write what `losses` needs of each step and the update does not change, once for a batch."""

    def losses(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors from the entries `step_keys`, each ``[n, ...]``; the scalars ``loss_*`` are summed and minimised."""

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """From what `losses` gave, stacked over minibatches, to the scalars that are logged."""

    def to(self, device: torch.device) -> Self:
        """The same loss on a device."""


@dataclass(frozen=True)
class Objective:
    """What turns a batch into gradients.

    Attributes:
        loss: what each minibatch minimises.
        advantage: writes ``advantage``, ``value_target`` and ``state_value`` into a batch ``[num_envs, steps]``.
        reward_norm: scales the rewards that the advantage sees; None leaves them as they are.
    """

    loss: MinibatchLoss
    advantage: GeneralizedAdvantage
    reward_norm: RewardNorm | None


class LossSpec(Spec):
    """Base of all objectives: the loss is a subclass's, the advantage is generalised advantage estimation.

    Builds `rlexp.losses.ppo.GeneralizedAdvantage`, which is ``torchrl.objectives.value.GAE`` (Schulman et al. 2016,
    eq. 16), beside the loss.

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

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss over the networks' own parameters.

        Raises:
            ConfigError: the loss cannot be built with these settings.
        """
        raise NotImplementedError

    def build(self, networks: ActorCritic, num_envs: int, device: torch.device) -> Objective:
        """The modules that train ``networks``; they hold the very same parameters."""
        from rlexp.losses.ppo import GeneralizedAdvantage
        from rlexp.normalization import RewardNorm

        advantage = GeneralizedAdvantage(networks.critic, self.gamma, self.lmbda, average=self.average_gae)
        reward_norm = RewardNorm(num_envs, self.gamma).to(device) if self.normalize_reward else None
        return Objective(self.build_loss(networks).to(device), advantage.to(device), reward_norm)


class ClipPPO(LossSpec):
    """PPO's clipped surrogate; builds `rlexp.losses.ppo.LeanClipPPOLoss`, a ``torchrl.objectives.ClipPPOLoss``.

    Schulman et al. 2017, eq. 7 and 9.

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

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss of torchrl, without its cost per call."""
        from rlexp.losses.ppo import LeanClipPPOLoss

        return LeanClipPPOLoss(
            networks.actor,
            networks.critic,
            clip_epsilon=self.clip_epsilon,
            entropy_bonus=self.entropy_coeff > 0,
            entropy_coeff=self.entropy_coeff,
            critic_coeff=self.critic_coeff,
            loss_critic_type=self.loss_critic_type,
            normalize_advantage=self.normalize_advantage,
        )


class AnyLoss(LossSpec):
    """Any ``torchrl.objectives.LossModule`` that takes an actor, a critic and an advantage.

    Attributes:
        loss_module: the loss; it is called with ``actor_network`` and ``critic_network`` beside its own arguments.
    """

    builds = ("torchrl.objectives.value.GAE",)

    loss_module: Node

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss that the config names."""
        from rlexp.losses.any import TorchRLLoss

        build = partial(self.loss_module.build, actor_network=networks.actor, critic_network=networks.critic)
        return TorchRLLoss(build_at("loss.loss_module", build), networks)
