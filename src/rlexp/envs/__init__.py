"""Environments: simulators in batches behind torchrl's transforms. Imports no torch."""

from rlexp.envs.config import DmControlConfig, EnvConfig, GymConfig, PixelsConfig, SimulatorConfig, TorchrlConfig

__all__ = ["DmControlConfig", "EnvConfig", "GymConfig", "PixelsConfig", "SimulatorConfig", "TorchrlConfig"]
