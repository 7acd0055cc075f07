"""Losses: what each minibatch minimises, and the advantage estimators; torchrl's modules. Imports no torch."""

from rlexp.losses.config import (
    A2CConfig,
    AdvantageLossConfig,
    AnyLossConfig,
    ClipPPOConfig,
    DistillConfig,
    KLPenaltyPPOConfig,
    LossConfig,
    MinibatchLossConfig,
    NPGConfig,
    PolicyLossConfig,
    ReinforceConfig,
    REPPOConfig,
    RPOConfig,
    SPOConfig,
    TRPOConfig,
)

__all__ = [
    "A2CConfig",
    "AdvantageLossConfig",
    "AnyLossConfig",
    "ClipPPOConfig",
    "DistillConfig",
    "KLPenaltyPPOConfig",
    "LossConfig",
    "MinibatchLossConfig",
    "NPGConfig",
    "PolicyLossConfig",
    "REPPOConfig",
    "RPOConfig",
    "ReinforceConfig",
    "SPOConfig",
    "TRPOConfig",
]
