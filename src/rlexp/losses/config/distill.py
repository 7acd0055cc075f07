"""Settings of the distillation of a teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from rlexp.config import NonNegative, Problem
from rlexp.losses.config.base import MinibatchLossConfig

if TYPE_CHECKING:
    from rlexp.losses.module import Loss
    from rlexp.policies import ActorCritic


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
