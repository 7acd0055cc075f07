"""Environments: simulators in batches behind torchrl's transforms. Imports no torch."""

from rlexp.envs.config import (
    AtariConfig,
    BatchedConfig,
    DmControlConfig,
    EnvConfig,
    GymConfig,
    MujocoConfig,
    PixelsConfig,
    SimulatorConfig,
    TorchrlConfig,
)

__all__ = [
    "AtariConfig",
    "BatchedConfig",
    "DmControlConfig",
    "EnvConfig",
    "GymConfig",
    "MujocoConfig",
    "PixelsConfig",
    "SimulatorConfig",
    "TorchrlConfig",
]
