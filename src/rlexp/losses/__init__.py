"""Losses: what each minibatch minimises, and the advantage estimators; torchrl's modules. Imports no torch."""

from rlexp.losses.config import (
    A2CConfig,
    AnyLossConfig,
    ClipPPOConfig,
    DistillConfig,
    KLPenaltyPPOConfig,
    LossConfig,
    MinibatchLossConfig,
    NPGConfig,
    PolicyLossConfig,
    ReinforceConfig,
    RPOConfig,
    SPOConfig,
    TRPOConfig,
)

__all__ = [
    "A2CConfig",
    "AnyLossConfig",
    "ClipPPOConfig",
    "DistillConfig",
    "KLPenaltyPPOConfig",
    "LossConfig",
    "MinibatchLossConfig",
    "NPGConfig",
    "PolicyLossConfig",
    "RPOConfig",
    "ReinforceConfig",
    "SPOConfig",
    "TRPOConfig",
]
