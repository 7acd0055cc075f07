"""Settings of the policies: a trunk, a distribution over actions, and a critic; imports torch only to build."""

from rlexp.policies.config.action_value import ActionValueConfig
from rlexp.policies.config.cnn import CNNConfig
from rlexp.policies.config.mlp import BetaConfig, CategoricalConfig, MLPConfig, NormalConfig, TanhNormalConfig
from rlexp.policies.config.network import GaussianConfig, NetworkConfig, PolicyConfig
from rlexp.policies.config.recurrent import GRUConfig, LSTMConfig, RecurrentConfig

__all__ = [
    "ActionValueConfig",
    "BetaConfig",
    "CNNConfig",
    "CategoricalConfig",
    "GRUConfig",
    "GaussianConfig",
    "LSTMConfig",
    "MLPConfig",
    "NetworkConfig",
    "NormalConfig",
    "PolicyConfig",
    "RecurrentConfig",
    "TanhNormalConfig",
]
