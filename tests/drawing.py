"""An environment that draws from the generators that training draws from, as many an environment does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import PendulumEnv


class Drawing(PendulumEnv):  # type: ignore[misc, unused-ignore]
    """Seeds the global generators, and draws from them where an episode begins."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.random.seed(seed)
            torch.manual_seed(seed)
        super().reset(seed=seed)
        self.state = np.random.uniform(-1, 1, 2) + torch.rand(2).numpy()
        return self._get_obs(), {}


gymnasium.register("Drawing-v0", Drawing, max_episode_steps=20)
