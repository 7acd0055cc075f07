"""Settings of the environments, a file for each kind of simulator; imports torch only to build."""

from rlexp.envs.config.atari import AtariConfig
from rlexp.envs.config.base import EnvConfig
from rlexp.envs.config.dm_control import DmControlConfig
from rlexp.envs.config.gym import GymConfig
from rlexp.envs.config.mujoco import MujocoConfig
from rlexp.envs.config.simulators import BatchedConfig, PixelsConfig, SimulatorConfig
from rlexp.envs.config.torchrl import TorchrlConfig

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
