"""Settings of the natural policy gradient and of TRPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlexp.config import Count, NonNegative, Positive
from rlexp.losses.config.base import AdvantageLossConfig, Annealed, Schedule


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
