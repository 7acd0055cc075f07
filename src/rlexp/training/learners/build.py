"""The update rule that a loss belongs to."""

from __future__ import annotations

import torch

from rlexp.experiment import ExperimentConfig
from rlexp.group import ALONE, Group
from rlexp.losses import NPGConfig
from rlexp.policies import ActorCritic
from rlexp.training.learners.base import Learner
from rlexp.training.learners.natural_gradient import NaturalGradientLearner
from rlexp.training.learners.ppo import PPOLearner


def build_learner(
    config: ExperimentConfig, networks: ActorCritic, device: torch.device, group: Group = ALONE
) -> Learner:
    """The learner for ``config.loss``, alone or one of a group.

    Raises:
        ConfigError: loss, optimizer or schedule cannot be built with these settings, or do not go together.
    """
    if isinstance(config.loss, NPGConfig):
        return NaturalGradientLearner(config, networks, device)
    return PPOLearner(config, networks, device, group)
