"""One Gymnasium simulator as rlexp wants it: one array of observations, actions counted from 0. Imports no torch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from copy import copy
from functools import cache
from typing import Any, Literal, TypeAlias

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import (
    AddRenderObservation,
    DtypeObservation,
    FlattenObservation,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
)
from gymnasium.wrappers import TransformAction as GymnasiumTransformAction

from rlexp.config import ConfigError, build_at, build_nested
from rlexp.envs.actions import ACTION_MASK, ActionMask, in_own_form, policy_space
from rlexp.envs.errors import UnsuitableEnvError
from rlexp.envs.raw_values import checked

Env: TypeAlias = "gymnasium.Env[Any, Any]"
MaskSource: TypeAlias = Literal["auto", "info", False]

HEADLESS = (
    "Without a display MuJoCo renders with EGL: set MUJOCO_GL=egl, and install libegl1 and libopengl0 (Debian, "
    "Ubuntu), or the graphics driver's own EGL."
)

log = logging.getLogger(__name__)


def default_to_egl() -> None:
    """Let MuJoCo render with EGL where there is no display, unless ``MUJOCO_GL`` says otherwise."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("MUJOCO_GL", "egl")  # read at the first rendering


class RepeatAction(gymnasium.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc, unused-ignore]
    """Gymnasium's wrapper of this name, with a copy of the action for each step: a simulator may change it in place.

    Args:
        env: what is stepped.
        num_repeats: steps of one action; rewards are summed, and the end of an episode ends the repetition.
    """

    def __init__(self, env: Env, num_repeats: int) -> None:
        super().__init__(env)
        self._num_repeats = num_repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment ``num_repeats`` times."""
        total = 0.0
        for _ in range(self._num_repeats):
            observation, reward, terminated, truncated, info = self.env.step(copy(action))
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class TransformAction(GymnasiumTransformAction):  # type: ignore[misc, type-arg, unused-ignore]
    """Gymnasium's wrapper of this name, which `make` puts around an environment, and no one else."""


def make(
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    pixels: tuple[int, int] | None = None,
    repeat: int = 1,
    action_mask: MaskSource = False,
) -> Env:
    """Make an environment whose observation is one array and whose action is in a `policy_space`.

    Observation spaces other than a Box (Dict, Tuple, Discrete, MultiBinary, MultiDiscrete) become one float vector, in
    Gymnasium's own order: a Dict's entries by name, each number of a Discrete as one of so many flags.

    Args:
        env_id: Gymnasium's id.
        kwargs: passed to ``gymnasium.make`` as they are; nodes with a ``_target_`` are built, for each copy anew.
        pixels: width and number of the gray pictures that are observed in place of what the simulator gives.
        repeat: times each action is repeated before it is observed what came of it; rewards are summed.
        action_mask: where masks come from (`rlexp.envs.actions.ActionMask`): ``info``; ``auto``, the entry
            ``action_mask`` of a Dict observation, if it has one; false, nowhere.

    Shapes:
        an observation is a vector ``[n]``, or with ``pixels=(width, stack)`` uint8 ``[stack, width, width]``, the
        newest picture last.

    Raises:
        UnsuitableEnvError: a space has no such form, or pixels are asked for and it cannot be rendered.
    """
    # By default MuJoCo writes what it warns of to a file in the working directory.
    mujoco.set_mju_user_warning(_say_once)
    pictures = {} if pixels is None else {"render_mode": "rgb_array"}
    env: Env = gymnasium.make(env_id, **pictures | build_at("env.kwargs", lambda: build_nested(kwargs or {})))
    env = checked(env, env_id)
    if repeat > 1:
        env = RepeatAction(env, repeat)
    declared = isinstance(env.observation_space, spaces.Dict) and ACTION_MASK in env.observation_space.spaces
    if action_mask == "info" or (action_mask == "auto" and declared):
        env = ActionMask(env, entry=action_mask == "auto")
    env = _vector(env) if pixels is None else _pixels(env, *pixels)
    space = policy_space(env.action_space)
    if space != env.action_space:
        own = in_own_form(env.action_space)
        env = TransformAction(env, lambda action: own(action), space)  # states of earlier runs name the lambda
    return env


def own_action_space(env: Env) -> spaces.Space[Any]:
    """The action space that an environment has apart from `make`."""
    return env.env.action_space if isinstance(env, TransformAction) else env.action_space


def _vector(env: Env) -> Env:
    if not isinstance(env.observation_space, spaces.Box):
        if not env.observation_space.is_np_flattenable:
            raise UnsuitableEnvError(f"its observation space {env.observation_space} is of no fixed size")
        for key, box in _boxes(env.observation_space):
            if len(box.shape) > 2 or (len(box.shape) == 2 and box.dtype == np.uint8):
                raise UnsuitableEnvError(
                    f"its observation {key!r} is a picture of shape {box.shape} beside others, and no one network "
                    "reads both. Register an id of your own that keeps one of them, by "
                    "gymnasium.wrappers.FilterObservation"
                )
        env = FlattenObservation(env)
    space = env.observation_space
    if not isinstance(space, spaces.Box) or (space.dtype == np.uint8 and len(space.shape) > 1):
        return env
    if space.dtype == np.float16 or not np.issubdtype(space.dtype, np.floating):
        largest = max(abs(float(bound)) for bound in (space.low.min(), space.high.max()))
        # float32 holds no whole numbers beyond 2^24 exactly.
        env = DtypeObservation(env, np.float64 if space.dtype.kind in "iu" and largest > 2**24 else np.float32)
    return env


def _boxes(space: spaces.Space[Any], key: str = "") -> Iterator[tuple[str, spaces.Box]]:
    """The arrays in a space, each with its path."""
    if isinstance(space, spaces.Box):
        yield key, space
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, part in parts:
            yield from _boxes(part, f"{key}.{name}" if key else str(name))


def _pixels(env: Env, width: int, stack: int) -> Env:
    try:
        env.reset(seed=0)  # the first picture, drawn below, places the camera: in every copy at the same point
        env = ResizeObservation(AddRenderObservation(env), (width, width))
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsuitableEnvError(f"pixels need more packages: pip install 'rlexp[pixels]' ({error})") from error
    except ConfigError:
        raise
    except Exception as error:
        raise UnsuitableEnvError(f"it cannot be rendered here: {error}. {HEADLESS}") from error
    return FrameStackObservation(GrayscaleObservation(env), stack)


@cache
def _say_once(message: str) -> None:
    log.warning("MuJoCo: %s", message.strip())
