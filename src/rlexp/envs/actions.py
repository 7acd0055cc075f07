"""Actions in the form that policies choose them in, and the masks that allow them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlexp.envs.errors import UnsuitableEnvError

ACTION_MASK = "action_mask"
MOST_VALUES = 1024

PolicySpace: TypeAlias = spaces.Box | spaces.Discrete | spaces.MultiDiscrete


def policy_space(space: spaces.Space[Any]) -> PolicySpace:
    """The space that a policy acts in: a vector of real numbers, one choice, or a vector of choices.

    Choices are numbered from 0. Each number of a MultiDiscrete, of a MultiBinary and of a Box of integers is a choice.

    Raises:
        UnsuitableEnvError: there is no such form.
    """
    if 0 in (space.shape or ()):
        raise UnsuitableEnvError(f"its action space {space} has no numbers")
    match space:
        case spaces.Discrete():
            return space if space.start == 0 else spaces.Discrete(int(space.n))
        case spaces.MultiDiscrete():
            return spaces.MultiDiscrete(space.nvec.ravel())
        case spaces.MultiBinary():
            return spaces.MultiDiscrete(np.full(prod(space.shape), 2))
        case spaces.Box() if space.dtype.kind == "f":
            flat = len(space.shape) == 1
            return space if flat else spaces.Box(space.low.ravel(), space.high.ravel(), dtype=space.low.dtype.type)
        case spaces.Box() if space.dtype.kind in "iu":
            if (space.high.astype(np.float64) - space.low >= MOST_VALUES).any():
                raise UnsuitableEnvError(
                    f"its action space {space} has integers of more than {MOST_VALUES:,} values, too many to choose "
                    "among. Register an id of your own that rounds real numbers, by gymnasium.wrappers.TransformAction"
                )
            return spaces.MultiDiscrete((space.high.astype(np.int64) - space.low.astype(np.int64)).ravel() + 1)
    raise UnsuitableEnvError(
        f"its action space is {space}, and a Box, Discrete, MultiDiscrete or MultiBinary is needed"
    )


def first_action(space: spaces.Space[Any]) -> npt.NDArray[Any] | None:
    """What an environment calls the action that is all zeros in its `policy_space`, int64; None for real numbers."""
    match space:
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(space.start, np.int64)
        case spaces.Box() if space.dtype.kind in "iu":
            return np.asarray(space.low, np.int64)
        case spaces.MultiBinary():
            return np.zeros(space.shape, np.int64)
    return None


def in_own_form(space: spaces.Space[Any]) -> Callable[[npt.NDArray[Any]], Any]:
    """From an action in the `policy_space` of ``space`` to an action in ``space``."""
    first, shape, dtype = first_action(space), space.shape, space.dtype
    if first is None:
        return lambda action: action.reshape(shape)
    return lambda action: (np.reshape(action, shape) + first).astype(dtype)


def choices(space: PolicySpace) -> list[int] | None:
    """How many values each choice of an action has; None for real numbers."""
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec]
    return None


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc, unused-ignore]
    """Gives the actions that are allowed after each step as ``info["action_mask"]``.

    The values of a Discrete action, or of each choice of a vector of choices one choice after the other, have a flag
    each: bool ``[values]``. The mask after an episode's last step may allow nothing.

    Args:
        env: whose masks are flags, or 0 and 1; of several choices in one array or in one for each.
        entry: whether they are an entry ``action_mask`` of a Dict observation, which is taken out of it: one entry that
            is left is the observation. Otherwise they are in ``info`` already.

    Raises:
        UnsuitableEnvError: its actions are real numbers.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, entry: bool) -> None:
        super().__init__(env)
        sizes = choices(policy_space(env.action_space))
        if sizes is None:
            where = "observation" if entry else "info"
            raise UnsuitableEnvError(
                f"its {where} has an {ACTION_MASK}, and its actions are real numbers, {env.action_space}: "
                "give env.action_mask=false"
            )
        self._sizes, self._starts = sizes, [0, *accumulate(sizes)][:-1]
        self._entry, self._single = entry, None
        if entry:
            left = {key: part for key, part in env.observation_space.spaces.items() if key != ACTION_MASK}
            if not left:
                raise UnsuitableEnvError(f"its observation has no entry beside {ACTION_MASK}")
            self._single = next(iter(left)) if len(left) == 1 else None
            self.observation_space = spaces.Dict(left) if self._single is None else left[self._single]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and look at the mask."""
        return self._masked(*self.env.reset(seed=seed, options=options), ended=False)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and look at the mask.

        Raises:
            ValueError: an episode goes on, and there is no mask or it allows nothing.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._masked(observation, info, ended=terminated or truncated)
        return observation, reward, terminated, truncated, info

    def _masked(self, observation: Any, info: dict[str, Any], *, ended: bool) -> tuple[Any, dict[str, Any]]:
        found = observation.get(ACTION_MASK) if self._entry else info.get(ACTION_MASK)
        if self._entry:
            observation = {key: value for key, value in observation.items() if key != ACTION_MASK}
            observation = observation if self._single is None else observation[self._single]
        if found is None and ended:
            found = np.ones(sum(self._sizes), np.bool_)
        return observation, info | {ACTION_MASK: self._checked(found, ended=ended)}

    def _checked(self, found: Any, *, ended: bool) -> npt.NDArray[np.bool_]:
        if found is None:
            raise ValueError(f"info has no {ACTION_MASK}, which env.action_mask=info asks for")
        parts = found if isinstance(found, tuple | list) else [found]
        given = np.concatenate([np.ravel(part) for part in parts])
        mask: npt.NDArray[np.bool_] = given.astype(np.bool_)
        if mask.shape != (sum(self._sizes),):
            raise ValueError(f"the {ACTION_MASK} has {mask.size} flags, and the action {sum(self._sizes)} values")
        if not np.array_equal(mask, given):
            raise ValueError(f"the {ACTION_MASK} is {given}, and flags or 0 and 1 are needed")
        allowed = np.logical_or.reduceat(mask, self._starts)
        if not (ended or allowed.all()):
            choice = "" if len(self._sizes) == 1 else f" of choice {int(np.argmin(allowed))}"
            raise ValueError(f"the {ACTION_MASK} allows none of the values{choice}, and the episode goes on")
        return mask


def is_masked(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment gives masks, by an `ActionMask` somewhere around it."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ActionMask):
            return True
        env = env.env
    return False


def random_choices(mask: npt.NDArray[np.bool_], sizes: list[int], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Allowed actions ``[n, choices]`` at random, from masks ``[n, values]``."""
    noise = np.where(mask, rng.random(mask.shape), -1)
    parts = np.split(noise, list(accumulate(sizes))[:-1], -1)
    return np.stack([part.argmax(-1) for part in parts], -1)
