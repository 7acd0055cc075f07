"""A partially observed task, which a recurrent policy solves and a feed-forward one does not. Imports no torch."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv


class Positions(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows the positions of cart and pole ``[2]`` and hides their velocities."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(full.low[::2], full.high[::2], dtype=full.dtype.type)

    def observation(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The first and the third number of CartPole's four."""
        return observation[::2]


def position_only_cartpole(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """CartPole as ``gymnasium.make("CartPole-v1")`` has it, but for what it shows."""
    return Positions(CartPoleEnv(**kwargs))


gymnasium.register("PositionOnlyCartPole-v1", position_only_cartpole, max_episode_steps=500, reward_threshold=475.0)
