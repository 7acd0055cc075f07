"""Objectives: a `LossSpec` describes what is minimised, `build` makes torchrl's loss and advantage modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import cos, pi
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from rlexp.config import Fraction, Node, NonNegative, Positive, Spec, build_at

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDictBase
    from torch import Tensor

    from rlexp.losses.advantages import AdvantageEstimator
    from rlexp.normalization import RewardNorm
    from rlexp.policies import ActorCritic


Schedule = Literal["constant", "linear", "cosine"]


class MinibatchLoss(Protocol):
    """What the learner asks of a loss.

    Records are what `losses` gave, stacked over minibatches.
    """

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """The scalars that weigh and bound the loss's parts; written to by annealing, saved with a checkpoint."""

    @property
    def tells_kl(self) -> bool:
        """Whether `divergence` is to be had."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write what `losses` needs of each step and the update does not change, once for a batch."""

    def losses(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors from the entries `step_keys`, each ``[n, ...]``; the scalars ``loss_*`` are summed and minimised."""

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scalars that are logged, from an update's records."""

    def divergence(self, records: dict[str, Tensor]) -> Tensor:
        """KL from the policy that acted to the one that is trained, a scalar, from an epoch's records."""

    def adapt(self, records: dict[str, Tensor]) -> None:
        """Adjust the coefficients that follow how far an update came, from its last epoch's records."""

    def to(self, device: torch.device) -> Self:
        """The same loss on a device."""


@dataclass(frozen=True)
class Objective:
    """What turns a batch into gradients.

    Attributes:
        loss: what each minibatch minimises.
        advantage: writes ``advantage``, ``value_target`` and ``state_value`` into a batch ``[num_envs, steps]``.
        reward_norm: scales the rewards that the advantage sees; None leaves them as they are.
        annealed: coefficients of the loss that may fall to 0 over the run: where they start, and how.
    """

    loss: MinibatchLoss
    advantage: AdvantageEstimator
    reward_norm: RewardNorm | None
    annealed: dict[str, tuple[float, Schedule]]

    def anneal(self, progress: float) -> None:
        """Set what is annealed to its value at a share of the run, from 0 to 1."""
        for name, (start, schedule) in self.annealed.items():
            self.loss.coefficients[name].fill_(start * remaining(schedule, progress))


def remaining(schedule: Schedule, progress: float) -> float:
    """The share of its start that an annealed coefficient has left, from 1 to 0 as ``progress`` goes from 0 to 1."""
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + cos(pi * progress)) / 2


class LossSpec(Spec):
    """Base of all objectives: the loss is a subclass's, the advantage has one of `rlexp.losses.advantages`.

    Attributes:
        estimator: of advantage and value target: ``gae`` and ``td_lambda`` (Schulman et al. 2016, eq. 16: they are the
            same), ``td1`` and ``td0`` (the same with lambda 1 and 0), ``vtrace`` (Espeholt et al. 2018, eq. 1).
        gamma: discount per agent step.
        lmbda: lambda of ``gae`` and ``td_lambda``; the other estimators have none.
        average_gae: normalise the advantage over each batch.
        normalize_reward: divide rewards by the running standard deviation of the discounted return.
    """

    on_policy: ClassVar[bool] = False

    estimator: Literal["gae", "td_lambda", "td1", "td0", "vtrace"]
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

    def annealed(self) -> dict[str, tuple[float, Schedule]]:
        """The loss's coefficients that may fall to 0 over the run: where they start, and how."""
        return {}

    def build(self, networks: ActorCritic, num_envs: int, device: torch.device) -> Objective:
        """The modules that train ``networks``; they hold the very same parameters."""
        from rlexp.normalization import RewardNorm

        reward_norm = RewardNorm(num_envs, self.gamma).to(device) if self.normalize_reward else None
        advantage = self.build_advantage(networks).to(device)
        return Objective(self.build_loss(networks).to(device), advantage, reward_norm, self.annealed())

    def build_advantage(self, networks: ActorCritic) -> AdvantageEstimator:
        """The estimator over the networks' own parameters."""
        from rlexp.losses.advantages import GeneralizedAdvantage, VTrace

        if self.estimator == "vtrace":
            return VTrace(networks.critic, networks.actor, self.gamma, average=self.average_gae)
        lmbda = {"td1": 1.0, "td0": 0.0}.get(self.estimator, self.lmbda)
        return GeneralizedAdvantage(networks.critic, self.gamma, lmbda, average=self.average_gae)


class PolicyLossSpec(LossSpec):
    """What the shipped losses share.

    Attributes:
        entropy_coeff: weight of the entropy bonus; 0 leaves the entropy uncomputed in the loss.
        entropy_schedule: how that weight falls to 0 over the run, a step a batch.
        critic_coeff: weight of the critic's loss.
        loss_critic_type: distance between value and target.
        clip_value: bound on how far a value moves from what it was before the update, beyond which its loss has no
            gradient towards the target; None is no bound.
        normalize_advantage: to mean 0 and standard deviation 1 over each minibatch.
    """

    entropy_coeff: NonNegative
    entropy_schedule: Schedule
    critic_coeff: NonNegative
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]
    clip_value: Positive | None
    normalize_advantage: bool

    def annealed(self) -> dict[str, tuple[float, Schedule]]:
        """See `LossSpec`."""
        return {"entropy_coeff": (self.entropy_coeff, self.entropy_schedule)}

    def options(self) -> dict[str, Any]:
        """Arguments of torchrl's constructor that all of them have, and how the advantage is normalised."""
        return {
            "entropy_bonus": self.entropy_coeff > 0,
            "entropy_coeff": self.entropy_coeff,
            "critic_coeff": self.critic_coeff,
            "loss_critic_type": self.loss_critic_type,
            "clip_value": self.clip_value,
            "normalize_advantage": self.normalize_advantage,
        }


class ClipPPO(PolicyLossSpec):
    """PPO's clipped surrogate; builds `rlexp.losses.ppo.LeanClipPPOLoss`, a ``torchrl.objectives.ClipPPOLoss``.

    Schulman et al. 2017, eq. 7 and 9.

    Attributes:
        clip_epsilon: the ratio's bounds are 1 - epsilon and 1 + epsilon.
        clip_schedule: how epsilon falls to 0 over the run, a step a batch.
    """

    builds = ("torchrl.objectives.ClipPPOLoss", "torchrl.objectives.value.GAE")

    clip_epsilon: Positive
    clip_schedule: Schedule

    def annealed(self) -> dict[str, tuple[float, Schedule]]:
        """See `LossSpec`."""
        return super().annealed() | {"clip_epsilon": (self.clip_epsilon, self.clip_schedule)}

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss of torchrl, without its cost per call."""
        from rlexp.losses.ppo import LeanClipPPOLoss

        return LeanClipPPOLoss(networks.actor, networks.critic, clip_epsilon=self.clip_epsilon, **self.options())


class KLPenaltyPPO(PolicyLossSpec):
    """PPO's penalised surrogate; builds `rlexp.losses.ppo.LeanKLPENPPOLoss`, a ``torchrl.objectives.KLPENPPOLoss``.

    Schulman et al. 2017, eq. 8 and section 4.

    Attributes:
        dtarg: KL between the policies before and after an update that the penalty aims at.
        beta: weight of the penalty in the first update.
        increment: its factor after an update that came further than 1.5 ``dtarg``.
        decrement: its factor after an update that came less far than ``dtarg`` / 1.5.
    """

    builds = ("torchrl.objectives.KLPENPPOLoss", "torchrl.objectives.value.GAE")

    dtarg: Positive
    beta: NonNegative
    increment: Annotated[float, Field(ge=1)]
    decrement: Annotated[float, Field(gt=0, le=1)]

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss of torchrl, without its cost per call."""
        from rlexp.losses.ppo import LeanKLPENPPOLoss

        penalty = {"dtarg": self.dtarg, "beta": self.beta, "increment": self.increment, "decrement": self.decrement}
        return LeanKLPENPPOLoss(networks.actor, networks.critic, **penalty, **self.options())


class A2C(PolicyLossSpec):
    """Advantage actor-critic; builds `rlexp.losses.a2c.LeanA2CLoss`, a ``torchrl.objectives.A2CLoss``.

    Mnih et al. 2016, algorithm S3, over a batch of parallel environments.
    """

    builds = ("torchrl.objectives.A2CLoss", "torchrl.objectives.value.GAE")
    on_policy = True

    def build_loss(self, networks: ActorCritic) -> MinibatchLoss:
        """The loss of torchrl, without its cost per call."""
        from rlexp.losses.a2c import LeanA2CLoss

        return LeanA2CLoss(networks.actor, networks.critic, **self.options())


class Reinforce(A2C):
    """REINFORCE with the critic as its baseline (Williams 1992): what `A2C` is with whole returns, ``estimator: td1``.

    The numbers of ``torchrl.objectives.ReinforceLoss``.
    """

    builds = ("torchrl.objectives.ReinforceLoss", "torchrl.objectives.value.TD1Estimator")


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
