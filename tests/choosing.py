"""An environment with any kind of observations and actions, which asserts that actions are its own and allowed."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "discrete_start": spaces.Discrete(3, start=-1),
    "multi": spaces.MultiDiscrete([2, 4, 3]),
    "multi_start": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]), start=np.array([[1, 1], [0, -3]])),
    "binary": spaces.MultiBinary((2, 2)),
    "integers": spaces.Box(np.array([[-2, 0]], np.int8), np.array([[3, 1]], np.int8), dtype=np.int8),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box_shape": spaces.Box(-1, np.array([[1, 2, 3], [4, 5, 6]], np.float32), dtype=np.float32),
    "box_number": spaces.Box(-1, 1, (), np.float64),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-10, 10, (3,), np.float32),
    "image": spaces.Box(0, 255, (2, 12, 12), np.uint8),
    "dict": spaces.Dict(position=spaces.Box(-10, 10, (2,), np.float64), kind=spaces.Discrete(3)),
    "discrete": spaces.Discrete(5),
    "number": spaces.Box(-10, 10, (), np.float32),
}


def values_of(space: spaces.Space[Any]) -> list[int]:
    """How many values each number of an action can have."""
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec.flat]
        case spaces.MultiBinary():
            return [2] * int(np.prod(space.shape))
    assert isinstance(space, spaces.Box)
    return [int(high) - int(low) + 1 for low, high in zip(space.low.flat, space.high.flat, strict=True)]


def lowest_of(space: spaces.Space[Any]) -> Any:
    """The first value of each number of an action."""
    return space.low if isinstance(space, spaces.Box) else getattr(space, "start", 0)


class Choosing(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Observes random numbers, and rewards the sum of an action times the first of them.

    Args:
        action: one of `ACTIONS`.
        observation: one of `OBSERVATIONS`.
        mask: where masks come from: ``entry`` of a Dict; ``info``; ``parts``, an array in ``info`` for each choice.
        nothing_at: the step at which the mask of every episode allows nothing.
        ends: probability that a step ends an episode.
    """

    def __init__(
        self,
        action: str = "discrete",
        observation: str = "vector",
        mask: str | None = None,
        nothing_at: int | None = None,
        ends: float = 0.1,
    ) -> None:
        self.action_space, seen = ACTIONS[action], OBSERVATIONS[observation]
        self.values = values_of(self.action_space) if mask is not None else []
        self.mask, self.nothing_at, self.ends, self.plain = mask, nothing_at, ends, observation
        self.observation_space = seen
        if mask == "entry":
            parts = seen.spaces if isinstance(seen, spaces.Dict) else {"observation": seen}
            self.observation_space = spaces.Dict({**parts, "action_mask": spaces.MultiBinary(sum(self.values))})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.taken: list[Any] = []
        self.given: list[Any] = []
        return self._see(ended=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.mask is not None:
            numbers = np.ravel(np.asarray(action) - lowest_of(self.action_space)).astype(int)
            assert all(flags[k] for k, flags in zip(numbers, self.allowed, strict=True)), (action, self.allowed)
        self.taken.append(np.array(action))
        reward = float(np.sum(action)) * self.first
        self.time += 1
        ended = bool(self.np_random.random() < self.ends)
        seen, info = self._see(ended=ended)
        return seen, reward, ended, False, info

    def _see(self, *, ended: bool) -> tuple[Any, dict[str, Any]]:
        self.first = float(self.np_random.normal())
        seen: Any = np.array([self.first, *self.np_random.normal(size=2)], np.float32).clip(-10, 10)
        match self.plain:
            case "image":
                seen = self.np_random.integers(0, 256, (2, 12, 12), dtype=np.uint8)
            case "dict":
                seen = {"position": seen[:2].astype(np.float64), "kind": int(self.np_random.integers(3))}
            case "discrete":
                seen = int(self.np_random.integers(5))
            case "number":
                seen = seen[0]
        if self.mask is None:
            self.given.append(seen)
            return seen, {}
        # Episodes end with masks of nothing: there is no action that they would be for.
        none = ended or self.time == self.nothing_at
        self.allowed = [self._flags(n) * (not none) for n in self.values]
        whole = np.concatenate(self.allowed)
        self.given.append((seen, whole))
        if self.mask == "entry":
            return {**(seen if isinstance(seen, dict) else {"observation": seen}), "action_mask": whole}, {}
        return seen, {"action_mask": whole if self.mask == "info" else tuple(self.allowed)}

    def _flags(self, n: int) -> Any:
        flags = (self.np_random.random(n) < 0.4).astype(np.int8)
        flags[self.np_random.integers(n)] = 1
        return flags


if "Choosing-v0" not in gymnasium.registry:
    gymnasium.register("Choosing-v0", Choosing, max_episode_steps=12)
