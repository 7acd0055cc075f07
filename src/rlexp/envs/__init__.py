"""Environments: simulators in batches behind torchrl's transforms. Imports no torch."""

from rlexp.envs.config import (
    DmControlConfig,
    EnvConfig,
    GymConfig,
    MujocoConfig,
    PixelsConfig,
    SimulatorConfig,
    TorchrlConfig,
)

__all__ = [
    "DmControlConfig",
    "EnvConfig",
    "GymConfig",
    "MujocoConfig",
    "PixelsConfig",
    "SimulatorConfig",
    "TorchrlConfig",
]
