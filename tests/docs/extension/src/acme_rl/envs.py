"""An environment that importing this module registers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt


class Drift(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """A point drifts; pushing it back to the origin is rewarded."""

    observation_space = gymnasium.spaces.Box(-5.0, 5.0, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = self.np_random.uniform(-1, 1, 1)
        return self._x.copy(), {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._x = np.clip(self._x + 0.1 * action + self.np_random.normal(0, 0.05, 1), -5, 5)
        return self._x.copy(), 1.0 - abs(float(self._x[0])), bool(abs(self._x[0]) > 3), False, {}


gymnasium.register("AcmeDrift-v0", Drift, max_episode_steps=25)
