"""A Gymnasium simulator's whole state, taken out in the middle of an episode and put into another process's copy.

Exact for MuJoCo environments, dm_control's suite among them, for Atari games on ale-py, and for those whose attributes,
of instances or of their classes, are numbers, arrays, members of Enums, containers of these, NumPy generators, spaces,
the environment's methods, and environments (all of Gymnasium's classic control). Anything else an attribute may hold is
refused, not guessed. What lies elsewhere, in variables of a module, say, cannot be seen from here.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from rlexp.envs.gymnasium.raw_values import RawValues

State = dict[str, Any]


class StateUnavailableError(Exception):
    """A simulator cannot give or take its state; the message says what of it stands in the way."""


@runtime_checkable
class SavesState(Protocol):
    """An environment whose simulators can be saved in the middle of their episodes."""

    def simulator_state(self) -> State:
        """Everything that decides what the simulators do next, as plain values, NumPy arrays and tensors.

        Raises:
            StateUnavailableError: a simulator cannot give its state.
        """

    def load_simulator_state(self, state: State) -> None:
        """Go on exactly where ``simulator_state`` was called.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """


def saving(env: object) -> SavesState:
    """``env`` itself, if its simulators can be saved.

    Raises:
        StateUnavailableError: they cannot.
    """
    # By the class: one of torchrl's batches asks its environments for other names, and may not have made them yet.
    if not issubclass(type(env), SavesState):
        raise StateUnavailableError(f"{type(env).__name__} cannot give its simulators' state")
    return cast("SavesState", env)


def get_state(env: gymnasium.Env[Any, Any]) -> State:
    """The state of one environment and its wrappers: attributes, generators, physics.

    Raises:
        StateUnavailableError: an attribute is of a kind that is not known to be saved whole.
    """
    seen = _Seen()
    state = _state(env, seen)
    _check_views(seen.arrays.values())
    return state


def _state(env: gymnasium.Env[Any, Any], seen: _Seen) -> State:
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
                _restore(owner, name, _decoded(value, getattr(owner, name, None), made))
            for name, value in saved.get("generators", {}).items():
                _set_generator(owner, name, value, made)
            for name, drawn in saved.get("spaces", {}).items():
                for space, value in zip(_spaces(getattr(owner, name)), drawn, strict=True):
                    if value is not None:
                        _set_generator(space, "_np_random", value, made)
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
            _set_physics(_data(_attributes(layer)[name]), value)


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


@dataclass
class _Seen:
    """Mutable values that were saved already, by their identities.

    Attributes:
        numbers: in the order in which they are made anew; what is there twice is saved as the number of the first.
        arrays: those of the user's own classes, with their names.
    """

    numbers: dict[int, int] = field(default_factory=dict)
    arrays: dict[int, tuple[npt.NDArray[Any], str]] = field(default_factory=dict)

    def reference(self, value: object) -> State | None:
        """What is saved in the place of a value that was saved before; None for the first time."""
        if (number := self.numbers.get(id(value))) is not None:
            return {_SAME: number}
        self.numbers[id(value)] = len(self.numbers)
        return None


def _layer_state(layer: object, layers: list[object], seen: _Seen) -> State:
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
        elif isinstance(value, _GENERATORS):
            generators[name] = value
        elif (data := _data(value)) is not None:
            physics[name] = _get_physics(data)
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


def _class_state(cls: type, seen: _Seen) -> State:
    """The variables of one of the user's own classes, without functions and what cannot change."""
    values: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    spaces: dict[str, Any] = {}
    for name, value in vars(cls).items():
        if name[:2] == "__" or _is_structure(value):
            continue
        if isinstance(value, gymnasium.Space):
            spaces[name] = value
        elif isinstance(value, _GENERATORS):
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
    seen: _Seen,
    *,
    own: bool,
) -> State:
    """What is saved of values, of generators, and of the generators that spaces draw from, in this order."""
    drawn = {name: [space._np_random for space in _spaces(space)] for name, space in spaces.items()}
    return {
        "values": {name: _encoded(value, f"{owner}.{name}", seen, own=own) for name, value in values.items()},
        "generators": {name: _generator_state(value, seen) for name, value in generators.items()},
        "spaces": {
            name: [None if value is None else _generator_state(value, seen) for value in parts]
            for name, parts in drawn.items()
            if any(value is not None for value in parts)
        },
    }


_GENERATORS = np.random.Generator | np.random.RandomState


def _generator_state(generator: np.random.Generator | np.random.RandomState, seen: _Seen) -> State:
    if (reference := seen.reference(generator)) is not None:
        return reference
    if isinstance(generator, np.random.RandomState):
        return {"kind": "RandomState", "state": generator.get_state(legacy=False)}
    return {"kind": type(generator.bit_generator).__name__, "state": generator.bit_generator.state}


def _check_views(arrays: Iterable[tuple[npt.NDArray[Any], str]]) -> None:
    """Make sure that no two arrays show the same numbers, which they would not do in a copy.

    Raises:
        StateUnavailableError: two do.
    """
    bounds = [(np.lib.array_utils.byte_bounds(array), array, name) for array, name in arrays if _is_ours(array)]
    before: list[tuple[int, npt.NDArray[Any], str]] = []
    for (low, high), array, name in sorted(bounds, key=lambda found: found[0]):
        before = [found for found in before if found[0] > low]
        for _, other, other_name in before:
            if np.shares_memory(other, array):
                message = f"{name} and {other_name} are views of the same numbers, which cannot be saved"
                raise StateUnavailableError(f"{message}: give one of them a copy")
        before.append((high, array, name))


def _is_ours(array: npt.NDArray[Any]) -> bool:
    """Whether an array's numbers are its own or another array's, and not MuJoCo's, say."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.flags.owndata


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


def _is_known(module: str) -> bool:
    """Whether a module is of a package whose environments keep their state in their instances' attributes."""
    return module.split(".")[0] in _KNOWN


def _is_structure(value: object) -> bool:
    """Whether the constructor alone decides it, so that a copy made in the same way has it already."""
    built = (EnvSpec, mujoco.MjModel, np.dtype, type, types.ModuleType, type(threading.Lock()), logging.Logger)
    # What draws the simulator, or names its parts; an image is drawn from its state alone.
    drawn = ("MujocoRenderer", "NamedIndexStructs", "Contexts")
    kind = type(value)
    return isinstance(value, built) or kind.__name__ in drawn or kind.__module__.startswith(("pygame", "_abc"))


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


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, an array, a member of an Enum, or a container of these."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(is_plain, value))
    return value is None or isinstance(value, Enum) or type(value) in (bool, int, float, str)


def _encoded(value: Any, name: str, seen: _Seen, *, own: bool) -> Any:
    """A plain value, or a deque of such, with members of Enums as their names, and references to what was there before.

    Raises:
        StateUnavailableError: it is of another kind.
    """
    if not is_plain(list(value) if type(value) is deque else value):
        raise StateUnavailableError(f"{name} is a {type(value).__qualname__}, which cannot be saved")
    if isinstance(value, Enum):
        return {_ENUM: [type(value).__module__, type(value).__qualname__, value.name]}
    if isinstance(value, tuple):
        return tuple(_encoded(item, name, seen, own=own) for item in value)
    if not isinstance(value, dict | list | deque | np.ndarray):
        return value
    if own and isinstance(value, np.ndarray):
        seen.arrays.setdefault(id(value), (value, name))
    if (reference := seen.reference(value)) is not None:
        return reference
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict):
        return {key: _encoded(item, name, seen, own=own) for key, item in value.items()}
    items = [_encoded(item, name, seen, own=own) for item in value]
    return {_DEQUE: [items, value.maxlen]} if isinstance(value, deque) else items


_ENUM, _DEQUE, _SAME = "__enum__", "__deque__", "__same__"


def _decoded(value: Any, present: Any, made: list[Any]) -> Any:
    """The value that `_encoded` was given; what is mutable is added to ``made``.

    Raises:
        StateUnavailableError: it names an Enum that this process does not have, or a value that was not there before.
    """
    if isinstance(value, dict):
        if value.keys() == {_ENUM}:
            module, qualname, name = value[_ENUM]
            return _member(module, qualname, name, present)
        if value.keys() == {_SAME}:
            return _made(value[_SAME], made)
        if value.keys() == {_DEQUE}:
            items, length = value[_DEQUE]
            made.append(queue := deque[Any](maxlen=length))
            queue.extend(_decoded(item, None, made) for item in items)
            return queue
        made.append(mapping := dict[Any, Any]())
        mapping.update((key, _decoded(item, None, made)) for key, item in value.items())
        return mapping
    if isinstance(value, list):
        made.append(sequence := list[Any]())
        sequence.extend(_decoded(item, None, made) for item in value)
        return sequence
    if isinstance(value, tuple):
        return tuple(_decoded(item, None, made) for item in value)
    if isinstance(value, np.ndarray):
        made.append(value)
    return value


def _made(number: Any, made: list[Any]) -> Any:
    if not (isinstance(number, int) and 0 <= number < len(made)):
        raise StateUnavailableError("the state refers to a value that is not in it")
    return made[number]


def _member(module: str, qualname: str, name: str, present: Any) -> Enum:
    found: Any = type(present)
    if (found.__module__, found.__qualname__) != (module, qualname):
        found = sys.modules.get(module)  # never imported: the environment has what it needs
        for part in qualname.split("."):
            found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Enum) and name in found.__members__):
        raise StateUnavailableError(f"{module}.{qualname}.{name} is no member of an Enum here")
    return found[name]


def _restore(owner: Any, name: str, value: Any) -> None:
    present = getattr(owner, name, None)
    if isinstance(present, deque) and isinstance(value, list):  # an earlier version saved it
        present.clear()
        present.extend(value)
    elif isinstance(present, np.ndarray) and not _is_ours(present) and _alike(present, value):
        present[...] = value  # a view: what it looks into must see the value too
    else:
        setattr(owner, name, value)


def _alike(present: npt.NDArray[Any], value: Any) -> bool:
    return isinstance(value, np.ndarray) and (present.shape, present.dtype) == (value.shape, value.dtype)


def _set_generator(owner: Any, name: str, value: State, made: list[Any]) -> None:
    if _SAME in value:
        setattr(owner, name, _made(value[_SAME], made))
        return
    kind, present = value["kind"], vars(owner).get(name)
    # The simulator's own parts may share the one that is there. It may also be another attribute's until the reset.
    if any(present is other for other in made):
        present = None
    if kind == "RandomState":
        if not isinstance(present, np.random.RandomState):
            setattr(owner, name, present := np.random.RandomState())
        present.set_state(value["state"])
    else:
        if not isinstance(present, np.random.Generator) or type(present.bit_generator).__name__ != kind:
            kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
            setattr(owner, name, present := np.random.Generator({k.__name__: k for k in kinds}[kind]()))
        present.bit_generator.state = value["state"]
    made.append(present)


def _is_emulator(value: object) -> bool:
    """Whether it is ale-py's Arcade Learning Environment."""
    return type(value).__name__ == "ALEInterface"


def _emulator_state(emulator: Any) -> npt.NDArray[np.uint8]:
    """The console, the game, and the emulator's own generator."""
    return np.frombuffer(emulator.cloneState(include_rng=True).serialize(), np.uint8)


def _set_emulator(emulator: Any, state: npt.NDArray[np.uint8]) -> None:
    from ale_py import ALEState

    emulator.restoreState(ALEState(state.tobytes()))


_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
# What a step leaves for others to read, sized by the model alone. The arrays of active constraints and islands come
# and go with every step, which computes them before it uses them.
DERIVED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat", "site_xpos"),
    *("site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "subtree_com", "subtree_linvel"),
    *("subtree_angmom", "cinert", "cdof", "cdof_dot", "cvel", "cacc", "cfrc_int", "cfrc_ext"),
    *("ten_length", "ten_velocity"),
    *("actuator_length", "actuator_velocity", "actuator_force", "qacc", "qacc_smooth", "qfrc_actuator", "qfrc_bias"),
    *("qfrc_passive", "qfrc_spring", "qfrc_damper", "qfrc_gravcomp", "qfrc_fluid", "qfrc_smooth", "qfrc_constraint"),
    *("qfrc_inverse", "sensordata", "energy"),
)


def _get_physics(data: mujoco.MjData) -> State:
    integration = np.empty(mujoco.mj_stateSize(data.model, _INTEGRATION))
    mujoco.mj_getState(data.model, data, integration, _INTEGRATION)
    derived = np.concatenate([array.ravel() for array in _derived(data)])
    return {"model": model_digest(data.model), "integration": integration, "derived": derived}


def _set_physics(data: mujoco.MjData, state: State) -> None:
    model = data.model
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    mujoco.mj_forward(model, data)
    # mj_forward overwrites the solver's warm start, and computes from this instant what the simulator last computed
    # from the one before: Ant and Humanoid read such stale arrays at the start of a step.
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    start = 0
    for array in _derived(data):
        array[...] = state["derived"][start : start + array.size].reshape(array.shape)
        start += array.size


def _derived(data: mujoco.MjData) -> list[npt.NDArray[np.float64]]:
    return [getattr(data, name) for name in DERIVED]


def model_digest(model: mujoco.MjModel) -> str:
    """SHA-256 of a model: of everything that decides how it moves."""
    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()
