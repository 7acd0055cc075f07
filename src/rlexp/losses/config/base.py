"""What the settings of all losses have; imports torch only to build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, ClassVar, Literal

from rlexp.config import Config, Fraction, Problem
from rlexp.distributed import ALONE, Group

if TYPE_CHECKING:
    from rlexp.experiment import ExperimentConfig
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

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """What it asks of the settings of other groups, which are named in full."""
        if experiment.policy.has_action_values:
            yield Problem("policy", "has an action-value critic, which only loss=reppo trains.", "action_value")
        if experiment.critic_apart:
            yield from self._critic_apart_problems(experiment)

    def _critic_apart_problems(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """What passes of the critic's own ask."""
        message = "needs a loss with a weight of the critic's part, such as loss=clip_ppo."
        yield Problem(experiment.critic_setting, message)


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

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """As `LossConfig.problems_with`; a standard deviation needs two numbers."""
        yield from super().problems_with(experiment)
        if self.average_gae and experiment.steps_per_batch == 1:
            message = "is one agent step: its advantage cannot be normalised. Give more, or loss.average_gae=false."
            yield Problem("collector.frames_per_batch", message, str(experiment.collector.frames_per_batch))

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

    @property
    def normalizes_minibatches(self) -> bool:
        """Whether the advantage is normalised over each minibatch."""
        return False

    def kl_settings(self, experiment: ExperimentConfig) -> Iterator[str]:
        """The settings that use the KL of an update while it is made."""
        if experiment.target_kl is not None:
            yield "target_kl"
        if experiment.optim.follows_kl:
            yield "optim.schedule"

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """As `AdvantageLossConfig.problems_with`; minibatches and gradient steps must be enough for what uses them."""
        yield from super().problems_with(experiment)
        if self.normalizes_minibatches and experiment.minibatch_size == 1:
            message = (
                "is too small with loss.normalize_advantage=true: one advantage has no standard deviation. Give at "
                "least 2, or loss.normalize_advantage=false."
            )
            yield Problem("minibatch_size", message, "1")
        # The KL is measured before each step: before the first it is 0, unless an earlier policy collected the batch.
        steps = experiment.num_epochs * experiment.minibatches_per_epoch
        if steps == 1 and not experiment.collector.lags:
            message = "uses the KL before each gradient step, which is 0 if there is only one: increase num_epochs."
            yield from (Problem(key, message) for key in self.kl_settings(experiment))
        if experiment.cuda_graph and experiment.checks:
            message = "must be false with checks=true, which asks each gradient whether it is NaN."
            yield Problem("cuda_graph", message, "true")

    def build(self, networks: ActorCritic) -> Loss:
        """The loss over the networks' own parameters.

        Raises:
            ConfigError: the loss cannot be built with these settings.
        """
        raise NotImplementedError

    def annealed(self) -> dict[str, Annealed]:
        """The coefficients that may fall to 0 over the run, by their names in the loss module."""
        return {}
