"""Settings of the natural policy gradient and of TRPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlexp.config import Count, NonNegative, Positive, Problem
from rlexp.losses.config.base import AdvantageLossConfig, Annealed, Schedule

if TYPE_CHECKING:
    from rlexp.experiment import ExperimentConfig


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

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """As `AdvantageLossConfig.problems_with`; what minibatches of the policy ask for has no meaning."""
        yield from super().problems_with(experiment)
        bound = getattr(experiment.policy, "scale_ub", None)
        for key, value, use in (
            ("optim.critic_lr", experiment.optim.critic_lr, "use optim.lr, which is the critic's"),
            ("target_kl", experiment.target_kl, "use loss.max_kl"),
            ("policy.scale_ub", bound, "a step by its KL would not see the bound"),
        ):
            if value is not None:
                yield Problem(key, f"has no meaning with this loss: {use}.", str(value))
        for key, on in (("cuda_graph", experiment.cuda_graph), ("compile", experiment.compile is True)):
            if on:
                yield Problem(key, "is for losses that minibatches minimise.", "true")
        if experiment.policy.recurrent:
            yield Problem("loss", "needs a feed-forward policy; recurrent ones train with loss=clip_ppo.")
        if getattr(experiment.policy, "shared", False):
            message = "must be false with this loss: the critic's passes would change the policy."
            yield Problem("policy.shared", message, "true")
        if experiment.optim.follows_kl:
            message = "is for losses that minibatches minimise: linear, cosine or constant."
            yield Problem("optim.schedule", message, "kl_adaptive")

    def _critic_apart_problems(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        message = "has no meaning with this loss: num_epochs and minibatch_size are the critic's."
        yield Problem(experiment.critic_setting, message)

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
