"""Settings of the losses and of advantage estimation; imports torch only to build."""

from rlexp.losses.config.base import AdvantageLossConfig, LossConfig, MinibatchLossConfig
from rlexp.losses.config.distill import DistillConfig
from rlexp.losses.config.natural_gradient import NPGConfig, TRPOConfig
from rlexp.losses.config.policy_gradient import (
    A2CConfig,
    AnyLossConfig,
    ClipPPOConfig,
    KLPenaltyPPOConfig,
    PolicyLossConfig,
    ReinforceConfig,
    RPOConfig,
    SPOConfig,
)
from rlexp.losses.config.reppo import REPPOConfig

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
