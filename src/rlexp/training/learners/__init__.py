"""Learners: each a rule that improves the policy on a batch. `Learner` is the interface, `build_learner` chooses."""

from rlexp.training.learners.base import Learner
from rlexp.training.learners.build import build_learner
from rlexp.training.learners.distill import DistillLearner
from rlexp.training.learners.natural_gradient import NaturalGradientLearner
from rlexp.training.learners.ppo import PPOLearner
from rlexp.training.learners.reppo import REPPOLearner

__all__ = ["DistillLearner", "Learner", "NaturalGradientLearner", "PPOLearner", "REPPOLearner", "build_learner"]
