"""Settings of the losses and of advantage estimation; imports torch only to build."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import cos, log, pi
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from rlexp.config import Config, ConfigError, Count, Fraction, Node, NonNegative, Positive, Problem, build_at
from rlexp.distributed import ALONE, Group

if TYPE_CHECKING:
    from rlexp.losses.advantages import AdvantageEstimator
    from rlexp.losses.module import Loss
    from rlexp.policies import ActorCritic


Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Annealed:
    """A coefficient that may fall to 0 over the run.

    Attributes:
        start: its value in the first update.
        schedule: how it falls.
    """

    start: float
    schedule: Schedule

    def at(self, progress: float) -> float:
        """The value after a share ``progress`` of the run, from 0 to 1."""
        match self.schedule:
            case "constant":
                return self.start
            case "linear":
                return self.start * (1 - progress)
            case "cosine":
                return self.start * ((1 + cos(pi * progress)) / 2)


class LossConfig(Config):
    """Base of all losses.

    Attributes:
        gamma: discount per agent step.
        lmbda: lambda of the returns that the critic learns.
        normalize_reward: divide rewards by the running standard deviation of the discounted return.
    """

    reads_raw: ClassVar[bool] = False
    """Whether batches must hold raw observations, as the simulators give them, too."""

    gamma: Fraction
    lmbda: Fraction
    normalize_reward: bool


class AdvantageLossConfig(LossConfig):
    """Base of the losses that read an advantage.

    Attributes:
        estimator: of advantage and value target: ``gae`` and ``td_lambda`` (Schulman et al. 2016, eq. 16: the two are
            the same), ``td1`` and ``td0`` (lambda 1 and 0), ``vtrace`` (Espeholt et al. 2018, eq. 1). The last three
            do not use ``lmbda``.
        average_gae: normalise the advantage over each batch.
        normalize_value: the critic learns value targets divided by their running standard deviation
            (`rlexp.losses.value_norm`).
    """

    estimator: Literal["gae", "td_lambda", "td1", "td0", "vtrace"]
    average_gae: bool
    normalize_value: bool

    def build_advantage(self, networks: ActorCritic, group: Group = ALONE) -> AdvantageEstimator:
        """The advantage estimator, over the critic's values: torchrl's ``GAE``, or its corrected ``VTrace``."""
        from torchrl.objectives.value import GAE

        from rlexp.losses.advantages import AdvantageEstimator, VTraceEstimator
        from rlexp.losses.value_norm import ValueNorm

        if self.estimator == "vtrace":
            estimator = VTraceEstimator(
                gamma=self.gamma, value_network=None, actor_network=networks.actor, average_adv=self.average_gae
            )
        else:
            lmbda = {"td1": 1.0, "td0": 0.0}.get(self.estimator, self.lmbda)
            # Not vectorized: that fails for lambda 0 (torchrl 0.14).
            estimator = GAE(
                gamma=self.gamma, lmbda=lmbda, value_network=None, average_gae=self.average_gae, vectorized=False
            )
        norm = ValueNorm(networks.critic.module, group=group) if self.normalize_value else None
        return AdvantageEstimator(networks.critic, estimator, norm, group)


class MinibatchLossConfig(AdvantageLossConfig):
    """Base of the losses that epochs of minibatches minimise (`rlexp.training.learners.ppo`)."""

    on_policy: ClassVar[bool] = False
    """Whether the gradient is right only for the policy that collected the batch: there is no importance ratio."""

    def build(self, networks: ActorCritic) -> Loss:
        """The loss over the networks' own parameters.

        Raises:
            ConfigError: the loss cannot be built with these settings.
        """
        raise NotImplementedError

    def annealed(self) -> dict[str, Annealed]:
        """The coefficients that may fall to 0 over the run, by their names in the loss module."""
        return {}


class PolicyLossConfig(MinibatchLossConfig):
    """Base of the shipped losses.

    Attributes:
        entropy_coeff: weight of the entropy bonus; with 0 the loss does not compute the entropy.
        entropy_schedule: how that weight falls to 0 over the run, one step per batch.
        critic_coeff: weight of the critic's loss.
        loss_critic_type: distance between value and target.
        clip_value: bound on how far a value moves from what it was before the update; beyond it the critic's loss has
            no gradient towards the target. None is no bound.
        normalize_advantage: to mean 0 and standard deviation 1 over each minibatch.
    """

    entropy_coeff: NonNegative
    entropy_schedule: Schedule
    critic_coeff: NonNegative
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]
    clip_value: Positive | None
    normalize_advantage: bool

    def annealed(self) -> dict[str, Annealed]:
        """The weight of the entropy bonus."""
        return {"entropy_coeff": Annealed(self.entropy_coeff, self.entropy_schedule)}

    def arguments(self, networks: ActorCritic) -> dict[str, Any]:
        """Arguments that the constructors of torchrl's losses share."""
        return {
            "actor_network": networks.actor,
            "critic_network": networks.critic,
            "entropy_bonus": self.entropy_coeff > 0,
            "entropy_coeff": self.entropy_coeff,
            "critic_coeff": self.critic_coeff,
            "loss_critic_type": self.loss_critic_type,
            "clip_value": self.clip_value,
            "functional": False,  # a functional copy of the parameters would double the time of a step
        }


class ClipPPOConfig(PolicyLossConfig):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7 and 9): ``torchrl.objectives.ClipPPOLoss``.

    Attributes:
        clip_epsilon: the probability ratio is clipped to 1 - epsilon and 1 + epsilon.
        clip_schedule: how epsilon falls to 0 over the run, one step per batch.
    """

    builds = ("torchrl.objectives.ClipPPOLoss", "torchrl.objectives.value.GAE")

    clip_epsilon: Positive
    clip_schedule: Schedule

    def annealed(self) -> dict[str, Annealed]:
        """The weight of the entropy bonus and the clipping bound."""
        return super().annealed() | {"clip_epsilon": Annealed(self.clip_epsilon, self.clip_schedule)}

    def build(self, networks: ActorCritic) -> Loss:
        """Torchrl's ``ClipPPOLoss``.

        Raises:
            ConfigError: the lower bound of the ratio would be negative, whose logarithm torchrl takes.
        """
        from torchrl.objectives import ClipPPOLoss

        from rlexp.losses.module import Loss

        self._check_bounds()
        module = ClipPPOLoss(
            clip_epsilon=self.clip_epsilon,
            normalize_advantage=self.normalize_advantage,
            log_explained_variance=False,  # the learner logs it once per batch
            **self.arguments(networks),
        )
        return Loss(module, networks)

    def _check_bounds(self) -> None:
        if self.clip_epsilon > 1:
            message = "must be at most 1: a ratio is never below 0. loss=kl_ppo loss.beta=0 clips nothing."
            raise ConfigError([Problem("loss.clip_epsilon", message, f"{self.clip_epsilon:g}")])


class RPOConfig(ClipPPOConfig):
    """Robust policy optimisation: `rlexp.losses.surrogates.RPOLoss`.

    Attributes:
        alpha: in the update, the Gaussian's mean is moved by a uniform number between -alpha and alpha.
    """

    alpha: Positive

    def build(self, networks: ActorCritic) -> Loss:
        """`RPOLoss` over a Gaussian actor.

        Raises:
            ConfigError: the policy is no Gaussian, or as of `ClipPPOConfig`.
        """
        from rlexp.losses.module import Loss
        from rlexp.losses.surrogates import RPOLoss

        self._check_bounds()
        if "loc" not in networks.actor.dist_params_keys:
            message = "perturbs the mean of a Gaussian: use policy=normal or tanh_normal."
            raise ConfigError([Problem("loss", message, "rpo")])
        module = RPOLoss(
            alpha=self.alpha,
            clip_epsilon=self.clip_epsilon,
            normalize_advantage=self.normalize_advantage,
            log_explained_variance=False,
            **self.arguments(networks),
        )
        return Loss(module, networks)


class SPOConfig(PolicyLossConfig):
    """Simple policy optimisation: `rlexp.losses.surrogates.SPOLoss`.

    Attributes:
        epsilon: distance from 1 of the ratio that an update leads to.
    """

    builds = ("torchrl.objectives.PPOLoss", "torchrl.objectives.value.GAE")

    epsilon: Positive

    def build(self, networks: ActorCritic) -> Loss:
        """`SPOLoss`."""
        from rlexp.losses.module import Loss
        from rlexp.losses.surrogates import SPOLoss

        module = SPOLoss(
            epsilon=self.epsilon,
            normalize_advantage=self.normalize_advantage,
            log_explained_variance=False,
            **self.arguments(networks),
        )
        return Loss(module, networks)


class KLPenaltyPPOConfig(PolicyLossConfig):
    """PPO with an adaptive KL penalty (Schulman et al. 2017, eq. 8): ``torchrl.objectives.KLPENPPOLoss``.

    Attributes:
        dtarg: target KL between the policies before and after an update, in nats.
        beta: weight of the penalty in the first update.
        increment: factor of the weight after an update whose KL is above 1.5 ``dtarg``.
        decrement: factor of the weight after an update whose KL is below ``dtarg`` / 1.5.
    """

    builds = ("torchrl.objectives.KLPENPPOLoss", "torchrl.objectives.value.GAE")

    dtarg: Positive
    beta: NonNegative
    increment: Annotated[float, Field(ge=1)]
    decrement: Annotated[float, Field(gt=0, le=1)]

    def build(self, networks: ActorCritic) -> Loss:
        """Torchrl's ``KLPENPPOLoss``, its penalty adapted once per update as in the paper."""
        from rlexp.losses.kl_penalty import KLPenaltyLoss
        from rlexp.losses.module import Loss

        module = KLPenaltyLoss(
            dtarg=self.dtarg,
            beta=self.beta,
            increment=self.increment,
            decrement=self.decrement,
            normalize_advantage=self.normalize_advantage,
            log_explained_variance=False,
            **self.arguments(networks),
        )
        return Loss(module, networks)


class A2CConfig(PolicyLossConfig):
    """Advantage actor-critic (Mnih et al. 2016, algorithm S3) over a batch of parallel environments.

    Builds ``torchrl.objectives.A2CLoss``.
    """

    builds = ("torchrl.objectives.A2CLoss", "torchrl.objectives.value.GAE")
    on_policy = True

    def build(self, networks: ActorCritic) -> Loss:
        """Torchrl's ``A2CLoss``, which leaves the normalisation of the advantage to us."""
        from torchrl.objectives import A2CLoss

        from rlexp.losses.module import Loss

        return Loss(A2CLoss(**self.arguments(networks)), networks, normalize_advantage=self.normalize_advantage)


class ReinforceConfig(A2CConfig):
    """REINFORCE with the critic as its baseline (Williams 1992): `A2CConfig` with whole returns, ``estimator: td1``.

    Its two parts are those of ``torchrl.objectives.ReinforceLoss``, weighted.
    """

    builds = ("torchrl.objectives.ReinforceLoss", "torchrl.objectives.value.TD1Estimator")


class AnyLossConfig(MinibatchLossConfig):
    """Any ``torchrl.objectives.LossModule`` that takes an actor, a critic and an advantage.

    Attributes:
        loss_module: the loss; it is called with ``actor_network`` and ``critic_network`` and its own arguments.
    """

    builds = ("torchrl.objectives.value.GAE",)

    loss_module: Node

    def build(self, networks: ActorCritic) -> Loss:
        """The loss that the config names."""
        from rlexp.losses.module import Loss

        build = partial(self.loss_module.build, actor_network=networks.actor, critic_network=networks.critic)
        return Loss(build_at("loss.loss_module", build), networks)


class DistillConfig(MinibatchLossConfig):
    """A student learns what a trained teacher would do: `rlexp.losses.distill.DistillLoss`, and the critic's loss.

    Attributes:
        teacher: the teacher's checkpoint, or its run for the latest one; an absolute path once it is read.
        trust: packages that the teacher's config may import, beside those that this config imports itself.
        distance: between the teacher's policy and the student's: ``kl``, or ``l2`` of their deterministic actions.
        critic_coeff: weight of the critic's loss; with 0 there is none, and the critic is not trained.
        loss_critic_type: distance between value and target.
    """

    builds = ("torchrl.objectives.PPOLoss", "torchrl.objectives.value.GAE")
    reads_raw = True

    teacher: Annotated[str, AfterValidator(os.path.abspath)]
    trust: list[str]
    distance: Literal["kl", "l2"]
    critic_coeff: NonNegative
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]

    def problems(self) -> Iterator[Problem]:
        """Nothing here has an advantage."""
        if self.average_gae:
            yield Problem("average_gae", "has no meaning with this loss, which has no advantage: false.", "true")

    def missing_requirements(self) -> Iterator[Problem]:
        """The teacher."""
        if not Path(self.teacher).exists():
            yield Problem("teacher", "is not there: name a run's folder or a checkpoint.", self.teacher)

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """What a teacher's config may import."""
        for index, package in enumerate(self.trust):
            yield f"trust.{index}", package, package

    def build(self, networks: ActorCritic) -> Loss:
        """`DistillLoss`, on batches that a teacher has labelled."""
        from rlexp.losses.distill import DistillLoss
        from rlexp.losses.module import Loss

        module = DistillLoss(
            networks.actor,
            networks.critic,
            distance=self.distance,
            entropy_bonus=False,
            critic_coeff=self.critic_coeff,
            loss_critic_type=self.loss_critic_type,
            log_explained_variance=False,  # the learner logs it once per batch
            functional=False,
        )
        loss = Loss(module, networks)
        loss.keys += module.teacher_keys
        return loss


class NPGConfig(AdvantageLossConfig):
    """Natural policy gradient (Kakade 2001): one step of a given KL per batch, then passes of the critic.

    The optimizer, ``num_epochs`` and ``minibatch_size`` are the critic's; the policy takes one step per batch.

    Attributes:
        max_kl: KL of a step from the policy before it to the one after it, by its quadratic approximation, in nats.
        kl_schedule: how that KL falls to 0 over the run, one step per batch.
        damping: added to the Fisher matrix's diagonal.
        cg_iterations: steps of the conjugate gradient method.
        loss_critic_type: distance between value and target.
    """

    builds = ("torchrl.objectives.value.GAE",)

    max_kl: Positive
    kl_schedule: Schedule
    damping: NonNegative
    cg_iterations: Count
    loss_critic_type: Literal["l1", "l2", "smooth_l1"]

    def max_kl_at(self, progress: float) -> float:
        """The KL of a step after a share ``progress`` of the run, from 0 to 1."""
        return Annealed(self.max_kl, self.kl_schedule).at(progress)


class TRPOConfig(NPGConfig):
    """Trust region policy optimisation (Schulman et al. 2015): a natural gradient step with a line search.

    Attributes:
        backtrack_factor: factor of a step that exceeds ``max_kl`` or does not raise the surrogate.
        backtracks: steps tried; where none is accepted, the policy stays as it is.
    """

    backtrack_factor: Annotated[float, Field(gt=0, lt=1)]
    backtracks: Count


class REPPOConfig(LossConfig):
    """Relative entropy pathwise policy optimisation (Voelcker et al. 2025): `rlexp.training.learners.REPPOLearner`.

    Attributes:
        max_kl: KL from the policy that acted to the current one; steps whose KL is above it lead back.
        target_entropy: entropy of each action, with the action bounds at -1 and 1, that ``alpha`` is led to; below
            that of the uniform distribution, log 2.
        alpha: weight of the entropy when training starts.
        beta: weight of the KL where it is above ``max_kl``, when training starts.
        multiplier_lr: learning rate of the logarithms of ``alpha`` and ``beta``.
        embedding_coeff: weight of the critic's prediction of its own features of the next step.
    """

    max_kl: Positive
    target_entropy: Annotated[float, Field(lt=log(2))]
    alpha: Positive
    beta: Positive
    multiplier_lr: Positive
    embedding_coeff: NonNegative
