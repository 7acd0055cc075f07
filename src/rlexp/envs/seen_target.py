"""A task whose image tells one thing and whose vector another, to see what reading both is for. Imports no torch."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

SIZE = 16
"""Pixels along each side of the image."""


class SeenTarget(gymnasium.Env[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]):
    """Move a point to a target that only the image shows; where the point is, only the vector tells.

    Both lie anywhere in the square from -1 to 1. An action moves the point by at most 0.2 along each axis, and the
    reward is its negative distance to the target.

    Shapes:
        image, uint8 ``[1, 16, 16]``: the target, two pixels wide; position ``[2]``; target ``[2]``, with
        ``show_target`` alone: where the target is, for a critic that sees more than its actor.
    """

    def __init__(self, show_target: bool = False) -> None:
        self.show_target = show_target
        place = spaces.Box(-1, 1, (2,), np.float32)
        entries = {"image": spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8), "position": place}
        if show_target:
            entries["target"] = place
        self.observation_space = spaces.Dict(entries)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Place point and target anew."""
        super().reset(seed=seed)
        self.position, self.target = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._observation(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[dict[str, npt.NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Move the point."""
        self.position = np.clip(self.position + np.float32(0.2) * action, -1, 1)
        distance = float(np.linalg.norm(self.position - self.target))
        return self._observation(), -distance, False, False, {}

    def _observation(self) -> dict[str, npt.NDArray[Any]]:
        image = np.zeros((1, SIZE, SIZE), np.uint8)
        row, column = ((self.target + 1) / 2 * (SIZE - 1)).astype(int)
        image[0, row : row + 2, column : column + 2] = 255
        observation: dict[str, npt.NDArray[Any]] = {"image": image, "position": self.position.copy()}
        if self.show_target:
            observation["target"] = self.target.copy()
        return observation


gymnasium.register("SeenTarget-v0", SeenTarget, max_episode_steps=20)
