"""Settings of the losses with a surrogate or a log-probability: PPO and its relatives, A2C, REINFORCE."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlexp.config import ConfigError, Node, NonNegative, Positive, Problem, build_at
from rlexp.losses.config.base import Annealed, MinibatchLossConfig, Schedule

if TYPE_CHECKING:
    from rlexp.experiment import ExperimentConfig
    from rlexp.losses.module import Loss
    from rlexp.policies import ActorCritic


class PolicyLossConfig(MinibatchLossConfig):
    """Base of the shipped losses that follow the policy gradient.

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

    @property
    def normalizes_minibatches(self) -> bool:
        """As `normalize_advantage` says."""
        return self.normalize_advantage

    def _critic_apart_problems(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        apart = f"the critic has passes of its own ({experiment.critic_setting})"
        if self.clip_value is not None:
            yield Problem("loss.clip_value", f"must be null where {apart}.", f"{self.clip_value:g}")
        if experiment.policy.recurrent:
            yield Problem(experiment.critic_setting, "needs a feed-forward policy.")
        if getattr(experiment.policy, "shared", False):
            yield Problem("policy.shared", f"must be false where {apart}: they would change the policy.", "true")
        if experiment.cuda_graph:
            yield Problem("cuda_graph", f"must be false where {apart}.", "true")
        if experiment.optim.follows_kl:
            message = f"follows the policy's KL, and {apart}, which have none: linear, cosine or constant."
            yield Problem("optim.schedule", message, "kl_adaptive")

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

    def problems(self) -> Iterator[Problem]:
        """Torchrl takes the logarithm of the lower bound of the ratio."""
        yield from super().problems()
        if self.clip_epsilon > 1:
            message = "must be at most 1: a ratio is never below 0. loss=kl_ppo loss.beta=0 clips nothing."
            yield Problem("clip_epsilon", message, f"{self.clip_epsilon:g}")

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """As `MinibatchLossConfig.problems_with`; each bound of a falling epsilon would be compiled."""
        yield from super().problems_with(experiment)
        if self.clip_schedule != "constant" and experiment.compile is True:
            message = "must be auto or false where loss.clip_schedule changes what would be compiled."
            yield Problem("compile", message, "true")

    def annealed(self) -> dict[str, Annealed]:
        """The weight of the entropy bonus and the clipping bound."""
        return super().annealed() | {"clip_epsilon": Annealed(self.clip_epsilon, self.clip_schedule)}

    def build(self, networks: ActorCritic) -> Loss:
        """Torchrl's ``ClipPPOLoss``."""
        from torchrl.objectives import ClipPPOLoss

        from rlexp.losses.module import Loss

        module = ClipPPOLoss(
            clip_epsilon=self.clip_epsilon,
            normalize_advantage=self.normalize_advantage,
            log_explained_variance=False,  # the learner logs it once per batch
            **self.arguments(networks),
        )
        return Loss(module, networks)


class RPOConfig(ClipPPOConfig):
    """Robust policy optimisation: `rlexp.losses.surrogates.RPOLoss`.

    Attributes:
        alpha: in the update, the Gaussian's mean is moved by a uniform number between -alpha and alpha.
    """

    alpha: Positive

    def build(self, networks: ActorCritic) -> Loss:
        """`RPOLoss` over a Gaussian actor.

        Raises:
            ConfigError: the policy is no Gaussian.
        """
        from rlexp.losses.module import Loss
        from rlexp.losses.surrogates import RPOLoss

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
        epsilon: the objective peaks where the ratio is 1 - epsilon or 1 + epsilon.
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

    def kl_settings(self, experiment: ExperimentConfig) -> Iterator[str]:
        """As `MinibatchLossConfig.kl_settings`, and the loss itself."""
        yield from super().kl_settings(experiment)
        yield "loss"

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

    @property
    def normalizes_minibatches(self) -> bool:
        """Whether the loss is asked to."""
        return bool(self.loss_module.arguments.get("normalize_advantage", False))

    def build(self, networks: ActorCritic) -> Loss:
        """The loss that the config names."""
        from rlexp.losses.module import Loss

        build = partial(self.loss_module.build, actor_network=networks.actor, critic_network=networks.critic)
        return Loss(build_at("loss.loss_module", build), networks)
