"""What a simulator itself returns, checked before any wrapper or array casts it. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from rlexp.config import ConfigError, Problem

Env: TypeAlias = "gymnasium.Env[Any, Any]"

log = logging.getLogger(__name__)

FIRST_STEPS = 4
_OWN = (PassiveEnvChecker, OrderEnforcing, TimeLimit)  # what gymnasium.make puts around every environment
_INTERFACE = "Gymnasium's interface since 0.26"


class RawValues(gymnasium.Wrapper):  # type: ignore[misc, type-arg, unused-ignore]
    """Checks what ``reset`` and ``step`` return against Gymnasium's interface and the environment's own spaces.

    Shapes and types are checked in the first steps, after which the wrapper takes itself out; with `always`, bounds too
    and in every step. Without it, an observation beyond its bounds is only logged, once.

    Args:
        env: the environment, beneath the wrappers of ``gymnasium.make``.
        env_id: for messages.
        above: the wrapper around this one; None for the outermost.
    """

    def __init__(self, env: Env, env_id: str, above: gymnasium.Wrapper[Any, Any, Any, Any] | None) -> None:
        super().__init__(env)
        self.always = False
        self._env_id, self._above, self._steps = env_id, above, 0
        self._logged = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and check what is returned.

        Raises:
            ConfigError: it is not what the environment declares.
        """
        try:
            result: Any = self.env.reset(seed=seed, options=options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise self._wrong(f"reset() takes no seed or options ({error}); {_INTERFACE} has both") from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise self._wrong(f"reset() must return (observation, info), {_INTERFACE}, and returns {_shown(result)}")
        self._check_observation(result[0], "reset()")
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and check what is returned.

        Raises:
            ConfigError: it is not what the environment declares.
        """
        result: Any = self.env.step(action)
        if not (isinstance(result, tuple) and len(result) == 5):
            five = "(observation, reward, terminated, truncated, info)"
            raise self._wrong(f"step() must return {five}, {_INTERFACE}, and returns {_shown(result)}")
        observation, reward, terminated, truncated, _ = result
        self._check_observation(observation, "step()")
        if reward is None or np.ndim(reward) != 0 or np.asarray(reward).dtype.kind not in "biuf":
            raise self._wrong(
                f"step() gives the reward {_shown(reward)}, which must be one number: return float(reward)"
            )
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_):
                raise self._wrong(
                    f"step() gives {name} = {_shown(flag)}, which must be True or False: return bool(...)"
                )
        self._steps += 1
        if self._steps >= FIRST_STEPS and not self.always and self._above is not None:
            self._above.env = self.env
        return result

    def _check_observation(self, observation: Any, source: str) -> None:
        space = self.env.observation_space
        if (reason := _mismatch(space, observation, "observation")) is not None:
            raise self._wrong(f"{source} gives {reason}: correct observation_space, or what is returned")
        if (reason := _out_of_bounds(space, observation, "observation")) is None:
            return
        if self.always:
            raise self._wrong(f"{source} gives {reason}: correct observation_space, or what is returned")
        if not self._logged:
            self._logged = True
            log.warning("%s: %s gives %s.", self._env_id, source, reason)

    def _wrong(self, reason: str) -> ConfigError:
        return ConfigError([Problem("env", f"its {reason}.", self._env_id)])


def checked(env: Env, env_id: str) -> Env:
    """``env`` as ``gymnasium.make`` gave it, with the checks right beneath the wrappers that are Gymnasium's own."""
    above, layer = None, env
    while isinstance(layer, gymnasium.Wrapper) and type(layer) not in _OWN:  # those that the id is registered with
        above, layer = layer, layer.env
    if type(layer) not in _OWN:
        return RawValues(env, env_id, None)
    while type(layer) in _OWN:
        above, layer = layer, layer.env
    assert isinstance(above, gymnasium.Wrapper)
    above.env = RawValues(layer, env_id, above)
    return env


def check_every_step(env: Env) -> None:
    """Let the checks of `checked` go on for ever, with bounds; to be called before the first step."""
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, RawValues):
            layer.always = True
        layer = layer.env


def check_observation(space: spaces.Space[Any], observation: Any) -> None:
    """Make sure that an observation is of its space's shape and type, and its integers among those of the space.

    Raises:
        TypeError: it would be misread.
    """
    if (reason := _mismatch(space, observation, "observation")) is not None:
        raise TypeError(f"it gives {reason}")


def _mismatch(space: spaces.Space[Any], value: Any, name: str) -> str | None:
    """What makes a value of another shape or type than its space, or None."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            found = sorted(value) if isinstance(value, Mapping) else _shown(value)
            return f"{name} with the entries {found}, and its space has {sorted(space.spaces)}"
        return _first(_mismatch(part, value[key], f"{name}[{key!r}]") for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            return f"{name} as {_shown(value)}, and its space is a tuple of {len(space.spaces)}"
        return _first(_mismatch(part, value[i], f"{name}[{i}]") for i, part in enumerate(space.spaces))
    if not isinstance(space, spaces.Box):
        return None if space.contains(value) else f"{name} = {_shown(value)}, which is not in its space {space}"
    try:
        array = np.asarray(value)
    except ValueError:
        return f"{name} as {_shown(value)}, which is no array"
    if array.shape != space.shape:
        return f"{name} of shape {array.shape}, and its space has {space.shape}"
    numbers = "biuf" if np.issubdtype(space.dtype, np.floating) else "biu"
    if array.dtype.kind not in numbers:
        return f"{name} of type {array.dtype}, and its space has {space.dtype}"
    if numbers == "biu" and array.dtype != space.dtype:  # other integers would be wrapped into its range
        return _out_of_bounds(space, value, name)
    return None


def _out_of_bounds(space: spaces.Space[Any], value: Any, name: str) -> str | None:
    """Which number lies beyond its bounds, or None; NaN is beyond all."""
    if isinstance(space, spaces.Dict):
        return _first(_out_of_bounds(part, value[key], f"{name}[{key!r}]") for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return _first(_out_of_bounds(part, value[i], f"{name}[{i}]") for i, part in enumerate(space.spaces))
    if not isinstance(space, spaces.Box):
        return None
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(space.dtype)  # rounding alone puts nothing beyond a bound
    inside = (array >= space.low) & (array <= space.high)
    if inside.all():
        return None
    at = tuple(int(i) for i in np.argwhere(~inside)[0])
    low, high = space.low[at], space.high[at]
    return f"{name}{list(at) if at else ''} = {array[at]}, and its space has {low} to {high}"


def _first(reasons: Any) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
