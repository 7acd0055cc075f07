"""Partially observed tasks, which a recurrent policy solves and a feed-forward one does not. Imports no torch."""

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


class Entries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows the same as two entries ``[2]``, ``positions`` and ``velocities``, so that a policy may read one alone."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, gymnasium.spaces.Box)
        parts = {name: (full.low[start::2], full.high[start::2]) for start, name in enumerate(_ENTRIES)}
        self.observation_space = gymnasium.spaces.Dict(
            {name: gymnasium.spaces.Box(low, high, dtype=full.dtype.type) for name, (low, high) in parts.items()}
        )

    def observation(self, observation: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """CartPole's four numbers by entry."""
        return {name: observation[start::2] for start, name in enumerate(_ENTRIES)}


_ENTRIES = ("positions", "velocities")


def position_only_cartpole(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """CartPole as ``gymnasium.make("CartPole-v1")`` has it, but for what it shows."""
    return Positions(CartPoleEnv(**kwargs))


def cartpole_entries(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """CartPole as ``gymnasium.make("CartPole-v1")`` has it, its observation in two entries."""
    return Entries(CartPoleEnv(**kwargs))


gymnasium.register("CartPoleEntries-v1", cartpole_entries, max_episode_steps=500, reward_threshold=475.0)
gymnasium.register("PositionOnlyCartPole-v1", position_only_cartpole, max_episode_steps=500, reward_threshold=475.0)
