"""Policies: actors and critics; torchrl's modules. Imports no torch."""

from rlexp.policies.actor_critic import ActorCritic
from rlexp.policies.config import (
    ActionValueConfig,
    BetaConfig,
    CategoricalConfig,
    CNNConfig,
    GRUConfig,
    LSTMConfig,
    NormalConfig,
    PolicyConfig,
    RecurrentConfig,
    TanhNormalConfig,
)

__all__ = [
    "ActionValueConfig",
    "ActorCritic",
    "BetaConfig",
    "CNNConfig",
    "CategoricalConfig",
    "GRUConfig",
    "LSTMConfig",
    "NormalConfig",
    "PolicyConfig",
    "RecurrentConfig",
    "TanhNormalConfig",
]
