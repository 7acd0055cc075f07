"""Optimizers and learning-rate schedules; torch's. Imports no torch."""

from rlexp.optim.config import AdamConfig, AdamWConfig, AnyOptimizerConfig, OptimConfig, RMSpropConfig, SGDConfig

__all__ = ["AdamConfig", "AdamWConfig", "AnyOptimizerConfig", "OptimConfig", "RMSpropConfig", "SGDConfig"]
