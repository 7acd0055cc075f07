"""One Gymnasium simulator as rlexp wants it: one array of observations, actions counted from 0. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import DtypeObservation, FlattenObservation, TransformAction

Env = gymnasium.Env[Any, Any]


class UnsuitableSpaceError(Exception):
    """An observation or action space cannot be brought into the form that rlexp trains on; the message says why."""


def make(env_id: str, **kwargs: Any) -> Env:
    """Make an environment whose observation is one array and whose action is a vector or a number from 0 on.

    Observation spaces other than a Box (Dict, Tuple, Discrete, MultiBinary, MultiDiscrete) become one float vector, in
    Gymnasium's own order: a Dict's entries as the Dict has them, each number of a Discrete as one of so many flags.

    Args:
        env_id: Gymnasium's id.
        kwargs: passed to ``gymnasium.make``.

    Raises:
        UnsuitableSpaceError: a space has no such form.
    """
    env: Env = gymnasium.make(env_id, **kwargs)
    if not isinstance(env.observation_space, spaces.Box):
        env = _flat(env)
    space = env.observation_space
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and not np.issubdtype(space.dtype, np.floating):
        env = DtypeObservation(env, np.float32)
    action = env.action_space
    if isinstance(action, spaces.Discrete) and action.start != 0:
        start = action.start
        env = TransformAction(env, lambda number: number + start, spaces.Discrete(int(action.n)))
    return env


def _flat(env: Env) -> Env:
    space = env.observation_space
    if not space.is_np_flattenable:
        raise UnsuitableSpaceError(f"its observation space {space} is of no fixed size, and a network needs one")
    for key, box in _boxes(space):
        if len(box.shape) > 1:
            raise UnsuitableSpaceError(
                f"its observation {key!r} is an array of shape {box.shape} beside others, and no one network reads "
                "both. Register an id of your own that keeps one of them, with gymnasium.wrappers.FilterObservation"
            )
    return FlattenObservation(env)


def _boxes(space: spaces.Space[Any], key: str = "") -> Iterator[tuple[str, spaces.Box]]:
    """The arrays in a space, each with its path."""
    if isinstance(space, spaces.Box):
        yield key, space
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, part in parts:
            yield from _boxes(part, f"{key}.{name}" if key else str(name))
