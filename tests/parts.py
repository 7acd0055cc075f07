"""A Gymnasium task whose observation has an image, a vector, a choice, and something that is for the critic alone."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ENV = ["env=gym", "env.id=parts:Parts-v0", "env.name=parts"]
SMALL_CNN = [
    "policy=cnn",
    "policy.channels=[3]",
    "policy.kernel_sizes=[4]",
    "policy.strides=[2]",
    "policy.num_cells=[8]",
]


class Parts(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """What it observes is drawn; an episode ends where ``secret`` is large."""

    def __init__(self, **more: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Dict({
            "secret": spaces.Box(-9, 9, (3,), np.float32),
            "camera": spaces.Box(0, 255, (1, 8, 8), np.uint8),
            "mode": spaces.Discrete(3),
            "arm": spaces.Dict(a=spaces.MultiBinary(1), b=spaces.Box(-9, 9, (2,), np.float64)),
            **more,
        })  # fmt: skip
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _observation(self) -> dict[str, Any]:
        draw = self.np_random
        return {
            "camera": draw.integers(0, 256, (1, 8, 8), dtype=np.uint8),
            "arm": {"a": np.ones(1, np.int8), "b": draw.uniform(1, 9, 2)},
            "mode": int(draw.integers(3)),
            "secret": draw.uniform(-9, 9, 3).astype(np.float32),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation = self._observation()
        return observation, float(action.sum()), bool(observation["secret"][0] > 7), False, {}


class Drawn(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Observes what is drawn from its space."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


class Plans(Drawn):
    """An image beside a matrix of floats."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (1, 8, 8), np.uint8), plan=spaces.Box(-1, 1, (3, 4), np.float32)
    )


class Depth(Drawn):
    """An image of integers that are no bytes, alone or beside a vector."""

    def __init__(self, *, lone: bool) -> None:
        image = spaces.Box(0, 2000, (1, 8, 8), np.uint16)
        self.observation_space = image if lone else spaces.Dict(image=image, speed=spaces.Box(-1, 1, (2,), np.float32))


def vectors() -> gymnasium.Env[Any, Any]:
    """The same without the image."""
    return gymnasium.wrappers.FilterObservation(Parts(), ["arm", "mode", "secret"])


gymnasium.register("Parts-v0", Parts, max_episode_steps=12)
gymnasium.register("Vectors-v0", vectors, max_episode_steps=12)
gymnasium.register("Depth-v0", Depth, max_episode_steps=12)
gymnasium.register("Plans-v0", Plans, max_episode_steps=12)
