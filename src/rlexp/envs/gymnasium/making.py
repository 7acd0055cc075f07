"""One Gymnasium simulator as rlexp wants it: arrays of observations, actions counted from 0. Imports no torch."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from functools import cache
from typing import Any, Literal, TypeAlias

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.wrappers import (
    AddRenderObservation,
    DtypeObservation,
    FrameStackObservation,
    GrayscaleObservation,
    NormalizeObservation,
    NormalizeReward,
    ResizeObservation,
    TransformObservation,
)
from gymnasium.wrappers import FlattenObservation as GymnasiumFlattenObservation
from gymnasium.wrappers import TransformAction as GymnasiumTransformAction

from rlexp.config import ConfigError, build_at, build_nested
from rlexp.envs.actions import ACTION_MASK, ActionMask, in_own_form, policy_space
from rlexp.envs.entries import OBSERVATION, RESERVED, row_type
from rlexp.envs.errors import UnsuitableEnvError
from rlexp.envs.gymnasium.raw_values import check_observation, checked

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


class FlattenObservation(GymnasiumFlattenObservation):  # type: ignore[misc, type-arg, unused-ignore]
    """Gymnasium's wrapper of this name, which would flatten what is not in the space to something else."""

    def observation(self, observation: Any) -> Any:
        """Flatten what is in the space."""
        check_observation(self.env.observation_space, observation)
        return super().observation(observation)


def make(
    env_id: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    pixels: tuple[int, int] | None = None,
    repeat: int = 1,
    action_mask: MaskSource = False,
    flatten: bool = False,
) -> Env:
    """Make an environment whose observation is an array or several, and whose action is in a `policy_space`.

    The entries of a Dict stay apart, unless there is but one. They, and observations that are no Dict, are arrays: what
    is of another space than a Box (Tuple, Discrete, MultiBinary, MultiDiscrete, a Dict within) becomes one vector of
    floats, in Gymnasium's own order: a Dict's entries by name, discrete numbers as one-hot vectors.

    Args:
        env_id: Gymnasium's id.
        kwargs: passed to ``gymnasium.make`` as they are; nodes with a ``_target_`` are built, for each copy anew.
        pixels: width and number of the gray images that are observed in place of what the simulator gives, drawn by it
            unless it gives images in colour itself.
        repeat: times each action is repeated before the next observation; rewards are summed.
        action_mask: where masks come from (`rlexp.envs.actions.ActionMask`): ``info``; ``auto``, the entry
            ``action_mask`` of a Dict observation, if it has one; false, nowhere.
        flatten: make one vector of the entries of a Dict as well.

    Shapes:
        an observation is an array, of several entries a structured one without dimensions that has a field for each;
        with ``pixels=(width, stack)`` uint8 ``[stack, width, width]``, the newest image last.

    Raises:
        UnsuitableEnvError: a space has no such form or no numbers, a wrapper learns statistics, or pixels are asked for
            and it cannot be rendered.
    """
    log_mujocos_warnings()
    rendered = {}
    if pixels is not None:
        default_to_egl()
        rendered = {"render_mode": "rgb_array"}
    if ":" in env_id:
        importlib.import_module(env_id.partition(":")[0])
        if "dm_control" in sys.modules:  # the user's environment imports it, and needs our patch for MuJoCo 4
            with suppress(ImportError):
                import rlexp.envs.dm_control  # noqa: F401
    env: Env = gymnasium.make(env_id, **rendered | build_at("env.kwargs", lambda: build_nested(kwargs or {})))
    _check_wrappers(env)
    env = checked(env, env_id)
    if repeat > 1:
        env = RepeatAction(env, repeat)
    declared = isinstance(env.observation_space, spaces.Dict) and ACTION_MASK in env.observation_space.spaces
    if action_mask == "info" or (action_mask == "auto" and declared):
        env = ActionMask(env, entry=action_mask == "auto")
    for key, box in _boxes(env.observation_space):
        if 0 in box.shape:
            raise UnsuitableEnvError(f"its observation{key and f' {key!r}'} has no numbers: its shape is {box.shape}")
    env = _arrays(env, flatten=flatten) if pixels is None else _pixels(env, *pixels)
    space = policy_space(env.action_space)
    if space != env.action_space:
        own = in_own_form(env.action_space)
        env = TransformAction(env, lambda action: own(action), space)  # states of earlier runs name the lambda
    return env


def _check_wrappers(env: Env) -> None:
    """Refuse Gymnasium's normalisation, of which each simulator, in training and evaluation, learns its own."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, NormalizeObservation | NormalizeReward) and layer.update_running_mean:
            ours = "env/transforms=running" if isinstance(layer, NormalizeObservation) else "loss.normalize_reward=true"
            raise UnsuitableEnvError(
                f"it has {type(layer).__name__} among its wrappers, whose statistics differ from simulator to "
                f"simulator and no evaluation could freeze: leave it out, and use {ours}"
            )
        layer = layer.env


def own_action_space(env: Env) -> spaces.Space[Any]:
    """The action space that an environment had before `make` changed it."""
    return env.env.action_space if isinstance(env, TransformAction) else env.action_space


def integer_images(env: Env) -> frozenset[str]:
    """The entries in three dimensions that `make` turned from integers to floats: colours no longer known as such."""
    env = env.env if isinstance(env, TransformAction) else env
    found: Mapping[str, spaces.Space[Any]] = {}
    if isinstance(env, Entries):
        own = env.env.observation_space
        assert isinstance(own, spaces.Dict)
        found = own.spaces
    elif isinstance(env, DtypeObservation):
        found = {OBSERVATION: env.env.observation_space}
    return frozenset(
        name
        for name, space in found.items()
        if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype.kind in "iu"
        if space.dtype != np.uint8
    )


def _arrays(env: Env, *, flatten: bool) -> Env:
    if flatten or not isinstance(env.observation_space, spaces.Dict):
        return _array(env)
    if len(parts := env.observation_space.spaces) > 1:
        return Entries(env)
    ((name, space),) = parts.items()
    return _array(TransformObservation(env, lambda observation: observation[name], space))


class Entries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observes the entries of a Dict in the order of their names, each an array as `make` has it.

    Args:
        env: its observation space is a Dict.

    Raises:
        UnsuitableEnvError: an entry has no such form, or the name of something else that a batch holds.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        own = env.observation_space
        assert isinstance(own, spaces.Dict)
        if taken := sorted(own.spaces.keys() & RESERVED):
            raise UnsuitableEnvError(
                f"its observation {taken[0]!r} is called like something else that a batch holds. Rename it in a "
                "gymnasium.ObservationWrapper, or give env.flatten=true, which makes one vector of all"
            )
        self.observation_space = spaces.Dict({name: _part(own.spaces[name], name) for name in sorted(own.spaces)})
        _, self._type = row_type(self.observation_space)

    def observation(self, observation: Mapping[str, Any]) -> npt.NDArray[Any]:
        """One structured row."""
        row, own = np.empty((), self._type), self.env.observation_space
        check_observation(own, observation)
        for name in self.observation_space.spaces:
            part, value = own[name], observation[name]
            row[name] = value if isinstance(part, spaces.Box) else spaces.flatten(part, value)
        return row


def _part(space: spaces.Space[Any], name: str) -> spaces.Box:
    """The array that a space is turned into."""
    box = space if isinstance(space, spaces.Box) else _flat_box(space, name)
    dtype = _float_type(box)
    return box if dtype is None else spaces.Box(box.low.astype(dtype), box.high.astype(dtype), box.shape, dtype)


def _flat_box(space: spaces.Space[Any], name: str = "") -> spaces.Box:
    """The vector that Gymnasium flattens a space to.

    Raises:
        UnsuitableEnvError: it has no fixed size, or an image in it.
    """
    if not space.is_np_flattenable:
        raise UnsuitableEnvError(f"its observation space {space} is of no fixed size")
    for key, box in _boxes(space, name):
        if len(box.shape) > 2 or (len(box.shape) == 2 and box.dtype == np.uint8):
            raise UnsuitableEnvError(
                f"its observation {key!r} is an image of shape {box.shape} within a {type(space).__name__}, which "
                "becomes one vector. Make it an entry of the outermost Dict, in a gymnasium.ObservationWrapper"
            )
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return flat


def _array(env: Env) -> Env:
    if not isinstance(env.observation_space, spaces.Box):
        _flat_box(env.observation_space)
        env = FlattenObservation(env)
    dtype = _float_type(env.observation_space)
    return env if dtype is None else DtypeObservation(env, dtype)


def _float_type(space: spaces.Space[Any]) -> type[np.floating[Any]] | None:
    """The type that integers and float16 are converted to; None for images, and what needs no conversion."""
    if not isinstance(space, spaces.Box) or (space.dtype == np.uint8 and len(space.shape) > 1):
        return None
    if space.dtype != np.float16 and np.issubdtype(space.dtype, np.floating):
        return None
    largest = max(abs(float(bound)) for bound in (space.low.min(), space.high.max()))
    # float32 holds no whole numbers beyond 2^24 exactly.
    return np.float64 if space.dtype.kind in "iu" and largest > 2**24 else np.float32


def _boxes(space: spaces.Space[Any], key: str = "") -> Iterator[tuple[str, spaces.Box]]:
    """The arrays in a space, each with its path."""
    if isinstance(space, spaces.Box):
        yield key, space
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, part in parts:
            yield from _boxes(part, f"{key}.{name}" if key else str(name))


def _pixels(env: Env, width: int, stack: int) -> Env:
    images = [key for key, box in _boxes(env.observation_space) if box.dtype == np.uint8 and len(box.shape) == 3]
    try:
        if images == [""] and env.observation_space.shape[0] == 3 != env.observation_space.shape[2]:
            env = _channels_last(env)
        elif images != [""] or env.observation_space.shape[2] != 3:
            if images:
                log.warning("env.from_pixels=true observes what render() draws, not the environment's own images")
            env.reset(seed=0)  # the first image, drawn below, places the camera: in every copy at the same point
            env = AddRenderObservation(env)
        env = ResizeObservation(env, (width, width))
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsuitableEnvError(f"pixels need more packages: pip install 'rlexp[pixels]' ({error})") from error
    except ConfigError:
        raise
    except Exception as error:
        drawn = any(
            base.__module__.startswith(("gymnasium.envs.mujoco", "shimmy")) for base in type(env.unwrapped).__mro__
        )
        raise UnsuitableEnvError(f"it cannot be rendered here: {error!r}.{f' {HEADLESS}' if drawn else ''}") from error
    return FrameStackObservation(GrayscaleObservation(env), stack)


def _channels_last(env: Env) -> Env:
    space = env.observation_space
    moved = spaces.Box(space.low.transpose(1, 2, 0), space.high.transpose(1, 2, 0), dtype=space.dtype.type)
    return TransformObservation(env, lambda image: image.transpose(1, 2, 0), moved)


def log_mujocos_warnings() -> None:
    """Log what MuJoCo warns of; by default it prints it, and writes it to a file in the working directory."""
    mujoco.set_mju_user_warning(_say_once)


@cache
def _say_once(message: str) -> None:
    log.warning("MuJoCo: %s", message.strip())
