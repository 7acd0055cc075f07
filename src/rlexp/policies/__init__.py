"""Policies: a `PolicySpec` describes actor and critic, `build` makes torchrl's modules. Imports no torch until then."""

from rlexp.policies.networks import (
    BetaPolicy,
    CategoricalPolicy,
    CNNPolicy,
    GRUPolicy,
    LSTMPolicy,
    NormalPolicy,
    RecurrentPolicy,
    TanhNormalPolicy,
)
from rlexp.policies.spec import ActorCritic, PolicySpec

__all__ = [
    "ActorCritic",
    "BetaPolicy",
    "CNNPolicy",
    "CategoricalPolicy",
    "GRUPolicy",
    "LSTMPolicy",
    "NormalPolicy",
    "PolicySpec",
    "RecurrentPolicy",
    "TanhNormalPolicy",
]
