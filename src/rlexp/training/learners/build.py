"""The update rule that a loss belongs to."""

from __future__ import annotations

import logging

import torch
from torchrl.envs import TransformedEnv

from rlexp.distributed import ALONE, Group
from rlexp.experiment import ExperimentConfig
from rlexp.losses import AdvantageLossConfig, DistillConfig, NPGConfig, REPPOConfig
from rlexp.policies import ActorCritic
from rlexp.training.learners.base import Learner
from rlexp.training.learners.distill import DistillLearner
from rlexp.training.learners.natural_gradient import NaturalGradientLearner
from rlexp.training.learners.ppo import PPOLearner
from rlexp.training.learners.reppo import REPPOLearner

log = logging.getLogger(__name__)


def build_learner(
    config: ExperimentConfig,
    networks: ActorCritic,
    device: torch.device,
    env: TransformedEnv,
    group: Group = ALONE,
) -> Learner:
    """The learner for ``config.loss``, alone or one of a group.

    Raises:
        ConfigError: loss, optimizer or schedule cannot be built with these settings, or do not go together.
        CheckpointError: a teacher cannot be read.
    """
    if isinstance(config.loss, REPPOConfig):
        return REPPOLearner(config, networks, device)
    assert isinstance(config.loss, AdvantageLossConfig)
    once = isinstance(config.loss, NPGConfig) or config.num_epochs == 1 or not config.recompute_advantage
    if config.loss.estimator == "vtrace" and once and not config.collector.lags:
        log.warning("loss.estimator=vtrace: advantages are estimated before the policy changes, which makes it td1.")
    if isinstance(config.loss, NPGConfig):
        return NaturalGradientLearner(config, networks, device)
    if isinstance(config.loss, DistillConfig):
        return DistillLearner(config, networks, device, env)
    return PPOLearner(config, networks, device, group)
