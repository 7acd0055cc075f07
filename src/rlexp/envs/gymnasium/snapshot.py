"""A Gymnasium simulator's whole state, taken out in the middle of an episode and put into another process's copy.

Exact for MuJoCo environments, dm_control's suite among them, for Atari games on ale-py, and for those whose attributes,
of instances or of their classes, are numbers, arrays, members of Enums, containers of these, NumPy generators, spaces,
the environment's methods, and environments (all of Gymnasium's classic control). Anything else an attribute may hold is
refused, not guessed. What lies elsewhere, in variables of a module, say, cannot be seen from here.
"""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from rlexp.envs.gymnasium.raw_values import RawValues
from rlexp.envs.mujoco.physics import get_physics, model_digest, set_physics
from rlexp.envs.saving import State, StateUnavailableError
from rlexp.envs.values import (
    GENERATORS,
    Seen,
    check_views,
    decoded,
    encoded,
    generator_state,
    is_plain,
    restore,
    set_generator,
)


def get_state(env: gymnasium.Env[Any, Any]) -> State:
    """The state of one environment and its wrappers: attributes, generators, physics.

    Raises:
        StateUnavailableError: an attribute is of a kind that is not known to be saved whole.
    """
    seen = Seen()
    state = _state(env, seen)
    check_views(seen.arrays.values())
    return state


def _state(env: gymnasium.Env[Any, Any], seen: Seen) -> State:
    layers = list(_layers(env))
    return {"layers": [_layer_state(layer, layers, seen) for layer in layers]}


def models(env: gymnasium.Env[Any, Any]) -> list[str]:
    """The `model_digest` of each MuJoCo model of an environment, which a state does not hold."""
    values = (value for layer in _layers(env) for value in _attributes(layer).values())
    return [model_digest(data.model) for data in map(_data, values) if data is not None]


def check_state(env: gymnasium.Env[Any, Any], state: State) -> None:
    """Make sure that a state fits an environment.

    Raises:
        StateUnavailableError: the environment was made in another way, or its physics differ.
    """
    layers, saved = list(_layers(env)), state["layers"]
    if [type(layer).__qualname__ for layer in layers] != [attributes["class"] for attributes in saved]:
        found = "/".join(attributes["class"] for attributes in saved)
        raise StateUnavailableError(f"the state is that of {found}, not of {env}")
    for layer, attributes in zip(layers, saved, strict=True):
        present = _attributes(layer)
        classes = [part["class"] for part in attributes.get("classes", [])]
        if classes and classes != [cls.__qualname__ for cls in _own_classes(layer)]:
            raise StateUnavailableError(f"the state is that of {' < '.join(classes)}, which has other bases here")
        for name, value in attributes["physics"].items():
            data = _data(present.get(name))
            if data is None or model_digest(data.model) != value["model"]:
                raise StateUnavailableError(f"{env}: the MuJoCo model differs, or was changed while the simulator ran")
        for name, value in attributes.get("environments", {}).items():
            inner = present.get(name)
            if not isinstance(inner, gymnasium.Env):
                raise StateUnavailableError(f"{type(layer).__qualname__}.{name} is no environment here")
            check_state(inner, value)
        for name in attributes.get("emulators", {}):
            if not _is_emulator(present.get(name)) or attributes["values"]["_game"] != present["_game"]:
                raise StateUnavailableError(f"{type(layer).__qualname__}.{name} is no emulator of the same game here")
        for name, value in attributes.get("functions", {}).items():
            bound = "method" in value and isinstance(present.get(name), types.MethodType) and _is_method(layers, value)
            if not (bound or _function(present.get(name)) == value):
                raise StateUnavailableError(f"{type(layer).__qualname__}.{name} is a different function here")
        for name in attributes["values"]:
            if callable(getattr(type(layer), name, None)):
                raise StateUnavailableError(f"{type(layer).__qualname__}.{name} is no part of a simulator's state")


def set_state(env: gymnasium.Env[Any, Any], state: State) -> None:
    """Put a state that fits (`check_state`) into an environment."""
    _set_state(env, state, [])


def _set_state(env: gymnasium.Env[Any, Any], state: State, made: list[Any]) -> None:
    layers = list(_layers(env))
    for layer, attributes in zip(layers, state["layers"], strict=True):
        classes = _own_classes(layer)
        owners = [*zip(classes, attributes.get("classes", []), strict=False), (layer, attributes)]
        for name, values in attributes.get("class_values", {}).items():  # an earlier version saved them
            owners.append((next(cls for cls in classes if cls.__qualname__ == name), {"values": values}))
        for owner, saved in owners:
            for name, value in saved["values"].items():
                if name in _BESIDES:  # an earlier version saved it
                    continue
                restore(owner, name, decoded(value, getattr(owner, name, None), made))
            for name, value in saved.get("generators", {}).items():
                set_generator(owner, name, value, made)
            for name, drawn in saved.get("spaces", {}).items():
                for space, value in zip(_spaces(getattr(owner, name)), drawn, strict=True):
                    if value is not None:
                        set_generator(space, "_np_random", value, made)
        for name, value in attributes.get("environments", {}).items():
            _set_state(_attributes(layer)[name], value, made)
        for name, value in attributes.get("functions", {}).items():
            if "method" in value:
                index, method = value["method"]
                setattr(layer, name, getattr(layers[index], method))
        for name, value in attributes.get("emulators", {}).items():
            _set_emulator(_attributes(layer)[name], value)
        # Last: attributes may be views into the physics.
        for name, value in attributes["physics"].items():
            set_physics(_data(_attributes(layer)[name]), value)


def _layers(env: gymnasium.Env[Any, Any]) -> Iterator[object]:
    """The wrappers from the outside in, the environment, and what one of dm_control consists of."""
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, RawValues):  # there in the first steps alone
            yield env
        env = env.env
    yield env
    inner = vars(env).get("_env")
    if type(inner).__module__ == "dm_control.rl.control":
        yield from (inner, inner.task, inner.physics)


def _data(value: Any) -> mujoco.MjData | None:
    """MuJoCo's data, bare or as dm_control wraps it."""
    inner = value.ptr if type(value).__module__ == "dm_control.mujoco.wrapper.core" else value
    return inner if isinstance(inner, mujoco.MjData) else None


def _attributes(layer: object) -> dict[str, Any]:
    """The attributes of an instance, those in ``__slots__`` included."""
    slots = [name for cls in type(layer).__mro__ for name in _names(vars(cls).get("__slots__", ()))]
    found = {name: getattr(layer, name) for name in slots if name[:2] != "__" and hasattr(layer, name)}
    return found | vars(layer)


def _names(slots: object) -> list[str]:
    return [slots] if isinstance(slots, str) else list(cast("Iterable[str]", slots))


def _layer_state(layer: object, layers: list[object], seen: Seen) -> State:
    owner = type(layer).__qualname__
    own = not _is_known(type(layer).__module__)
    values: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    spaces: dict[str, Any] = {}
    environments: dict[str, Any] = {}
    physics: State = {}
    optional: State = {"emulators": {}, "functions": {}}
    for name, value in _attributes(layer).items():
        wrapped = isinstance(layer, gymnasium.Wrapper) and name == "env"  # a layer of its own
        if wrapped or name in _BESIDES or any(value is other for other in layers) or _is_structure(value):
            continue
        if isinstance(value, gymnasium.Space):
            if own:
                spaces[name] = value
        elif isinstance(value, GENERATORS):
            generators[name] = value
        elif (data := _data(value)) is not None:
            physics[name] = get_physics(data)
        elif isinstance(value, gymnasium.Env):
            environments[name] = value
        elif _is_emulator(value):
            optional["emulators"][name] = _emulator_state(value)
        elif isinstance(value, types.MethodType) and any(value.__self__ is other for other in layers):
            index = next(i for i, other in enumerate(layers) if value.__self__ is other)
            optional["functions"][name] = {"method": (index, value.__name__)}
        elif (function := _function(value)) is not None:
            if _hides_state(value, own=own):
                raise StateUnavailableError(f"{owner}.{name} is a function that may hold state, which cannot be saved")
            optional["functions"][name] = function
        else:
            values[name] = value
    # In the order in which `set_state` makes them anew.
    optional["classes"] = [_class_state(cls, seen) for cls in _own_classes(layer)]
    saved = _saved(owner, values, generators, spaces, seen, own=own)
    optional["environments"] = {name: _state(value, seen) for name, value in environments.items()}
    return {"class": owner, **saved, "physics": physics} | {kind: found for kind, found in optional.items() if found}


def _class_state(cls: type, seen: Seen) -> State:
    """The variables of one of the user's own classes, without functions and what cannot change."""
    values: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    spaces: dict[str, Any] = {}
    for name, value in vars(cls).items():
        if name[:2] == "__" or _is_structure(value):
            continue
        if isinstance(value, gymnasium.Space):
            spaces[name] = value
        elif isinstance(value, GENERATORS):
            generators[name] = value
        elif is_plain(value) or _is_bound(value) or not (hasattr(type(value), "__get__") or _is_constant(value)):
            values[name] = value
    owner = cls.__qualname__
    return {"class": owner, **_saved(owner, values, generators, spaces, seen, own=True)}


def _saved(
    owner: str,
    values: Mapping[str, Any],
    generators: Mapping[str, np.random.Generator | np.random.RandomState],
    spaces: Mapping[str, gymnasium.Space[Any]],
    seen: Seen,
    *,
    own: bool,
) -> State:
    """What is saved of values, of generators, and of the generators that spaces draw from, in this order."""
    drawn = {name: [space._np_random for space in _spaces(space)] for name, space in spaces.items()}
    return {
        "values": {name: encoded(value, f"{owner}.{name}", seen, own=own) for name, value in values.items()},
        "generators": {name: generator_state(value, seen) for name, value in generators.items()},
        "spaces": {
            name: [None if value is None else generator_state(value, seen) for value in parts]
            for name, parts in drawn.items()
            if any(value is not None for value in parts)
        },
    }


def _spaces(space: gymnasium.Space[Any]) -> Iterator[gymnasium.Space[Any]]:
    """A space, and those that it consists of."""
    yield space
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces
        for part in parts:
            yield from _spaces(part)


def _own_classes(layer: object) -> list[type]:
    """The classes of an instance that are the user's own, whose variables may be part of its state."""
    return [cls for cls in type(layer).__mro__ if not _is_known(cls.__module__)]


# Constructors' arguments, functions among them; what Gymnasium keeps to compare the first two steps by; and where this
# machine keeps the model.
_BESIDES = ("_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_previous_data", "fullpath")


_KNOWN = (
    "builtins",
    "abc",
    "typing",
    "gymnasium",
    "mujoco",
    "numpy",
    "dm_control",
    "dm_env",
    "shimmy",
    "rlexp",
    "ale_py",
)


# Of pygame what draws and sounds, and no more: a Rect or a Vector2 may be the state of a game.
_DRAWING = {
    "_abc",
    *("pygame.font", "pygame.freetype", "pygame.mixer", "pygame.surface", "pygame.time", "pygame.window"),
    *("pygame._window", "pygame._sdl2.video"),
}


def _is_known(module: str) -> bool:
    """Whether a module is of a package whose environments keep their state in their instances' attributes."""
    return module.split(".")[0] in _KNOWN


def _is_structure(value: object) -> bool:
    """Whether the constructor alone decides it, so that a copy made in the same way has it already."""
    built = (EnvSpec, mujoco.MjModel, np.dtype, type, types.ModuleType, type(threading.Lock()), logging.Logger)
    # What draws the simulator, or names its parts; an image is drawn from its state alone.
    drawn = ("MujocoRenderer", "NamedIndexStructs", "Contexts")
    kind = type(value)
    return isinstance(value, built) or kind.__name__ in drawn or kind.__module__ in _DRAWING


def _function(value: object) -> State | None:
    """What a function is called; None where it is none."""
    if not isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return None
    return {"name": f"{value.__module__}.{value.__qualname__}"}


def _is_method(layers: list[object], saved: State) -> bool:
    """Whether a saved method is one that a layer's class defines."""
    index, method = saved["method"]
    return isinstance(getattr(type(layers[index]), method, None), types.FunctionType)


def _hides_state(function: Any, *, own: bool) -> bool:
    """Whether calls may change what a function does that is the user's own, or an attribute of the user's."""
    inner = getattr(function, "__func__", function)
    if _is_bound(function) and own:
        return True
    changes = _is_bound(function) or bool(getattr(inner, "__closure__", None))
    return changes and not _is_known(str(function.__module__))


def _is_bound(function: object) -> bool:
    """Whether a function is the method of an object that may change."""
    holder = getattr(function, "__self__", None) if _function(function) is not None else None
    return not (isinstance(holder, type | types.ModuleType) or _is_constant(holder))


def _is_constant(value: object) -> bool:
    """Whether a value cannot change: what is mutable has no hash, or that of its identity."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_constant, value))
    return value is None or type(value).__hash__ not in (None, object.__hash__)


def _is_emulator(value: object) -> bool:
    """Whether it is ale-py's Arcade Learning Environment."""
    return type(value).__name__ == "ALEInterface"


def _emulator_state(emulator: Any) -> npt.NDArray[np.uint8]:
    """The console, the game, and the emulator's own generator."""
    return np.frombuffer(emulator.cloneState(include_rng=True).serialize(), np.uint8)


def _set_emulator(emulator: Any, state: npt.NDArray[np.uint8]) -> None:
    from ale_py import ALEState

    emulator.restoreState(ALEState(state.tobytes()))
