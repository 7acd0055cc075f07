"""Partially observed tasks: for policies with a memory, and for a critic that sees more than its actor. No torch."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv


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
    """Shows the state as two entries ``[2]``, ``positions`` and ``velocities``, so that a policy may read one alone."""

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


class Priced(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds to the reward of each step a price, uniform from -10 to 10, that is drawn at reset and kept for the episode.

    No action changes what the price adds, an exogenous reward (Dietterich et al. 2018), and yet the price causes most
    of the variance of returns: a policy need not observe it, a critic must. Entries: ``state``, the environment's own
    observation, and ``price`` ``[1]``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        price = gymnasium.spaces.Box(-_HIGHEST, _HIGHEST, (1,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(state=env.observation_space, price=price)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw another price."""
        state, info = self.env.reset(seed=seed, options=options)
        self.price = self.np_random.uniform(-_HIGHEST, _HIGHEST, 1).astype(np.float32)
        return {"state": state, "price": self.price.copy()}, info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """A step of the environment, with the price added to its reward."""
        state, reward, terminated, truncated, info = self.env.step(action)
        return {"state": state, "price": self.price.copy()}, float(reward + self.price[0]), terminated, truncated, info


_HIGHEST = 10


def position_only_cartpole(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """CartPole as ``gymnasium.make("CartPole-v1")`` has it, but for what it shows."""
    return Positions(CartPoleEnv(**kwargs))


def cartpole_entries(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """CartPole as ``gymnasium.make("CartPole-v1")`` has it, its observation in two entries."""
    return Entries(CartPoleEnv(**kwargs))


def priced_pendulum(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Pendulum as ``gymnasium.make("Pendulum-v1")`` has it, each step with the episode's price."""
    return Priced(PendulumEnv(**kwargs))


gymnasium.register("CartPoleEntries-v1", cartpole_entries, max_episode_steps=500, reward_threshold=475.0)
gymnasium.register("PositionOnlyCartPole-v1", position_only_cartpole, max_episode_steps=500, reward_threshold=475.0)
gymnasium.register("PricedPendulum-v1", priced_pendulum, max_episode_steps=200)
