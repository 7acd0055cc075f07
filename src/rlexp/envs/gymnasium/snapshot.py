"""A Gymnasium simulator's whole state, taken out in the middle of an episode and put into another process's copy.

Exact for MuJoCo environments, dm_control's suite among them, for Atari games on ale-py, and for those whose attributes,
of instances or of their classes, are numbers, arrays, members of Enums, containers of these, NumPy generators, spaces,
bound methods and environments (all of Gymnasium's classic control). Anything else an attribute may hold is refused, not
guessed. What lies elsewhere, in variables of a module, say, cannot be seen from here.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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
    layers = list(_layers(env))
    return {"layers": [_layer_state(layer, layers) for layer in layers]}


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
    layers = list(_layers(env))
    for layer, attributes in zip(layers, state["layers"], strict=True):
        classes = {cls.__qualname__: cls for cls in _own_classes(layer)}
        by_owner = [(layer, attributes["values"])]
        by_owner += [(classes[name], values) for name, values in attributes.get("class_values", {}).items()]
        for owner, values in by_owner:
            for name, value in values.items():
                if name in _BESIDES:  # an earlier version saved it
                    continue
                restore(owner, name, decoded(value, getattr(owner, name, None)))
        for name, value in attributes.get("environments", {}).items():
            set_state(_attributes(layer)[name], value)
        for name, value in attributes.get("functions", {}).items():
            if "method" in value:
                index, method = value["method"]
                setattr(layer, name, getattr(layers[index], method))
        for name, value in attributes["generators"].items():
            _set_generator(layer, name, value)
        for name, drawn in attributes.get("spaces", {}).items():
            for space, value in zip(_spaces(getattr(layer, name)), drawn, strict=True):
                if value is not None:
                    _set_generator(space, "_np_random", value)
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


def _layer_state(layer: object, layers: list[object]) -> State:
    owner = type(layer).__qualname__
    state: State = {"class": owner, "values": {}, "generators": {}, "physics": {}}
    optional: State = {"environments": {}, "emulators": {}, "functions": {}, "spaces": {}, "class_values": {}}
    own = not _is_known(type(layer).__module__)
    for name, value in _attributes(layer).items():
        wrapped = isinstance(layer, gymnasium.Wrapper) and name == "env"  # a layer of its own
        if wrapped or name in _BESIDES or any(value is other for other in layers) or _is_structure(value):
            continue
        if isinstance(value, gymnasium.Space):
            if own and any(drawn := [_drawn(space) for space in _spaces(value)]):
                optional["spaces"][name] = drawn
        elif isinstance(value, np.random.Generator):
            state["generators"][name] = _generator_state(value)
        elif isinstance(value, np.random.RandomState):
            state["generators"][name] = {"kind": "RandomState", "state": value.get_state(legacy=False)}
        elif (data := _data(value)) is not None:
            state["physics"][name] = _get_physics(data)
        elif isinstance(value, gymnasium.Env):
            optional["environments"][name] = get_state(value)
        elif _is_emulator(value):
            optional["emulators"][name] = _emulator_state(value)
        elif isinstance(value, types.MethodType) and any(value.__self__ is other for other in layers):
            index = next(i for i, other in enumerate(layers) if value.__self__ is other)
            optional["functions"][name] = {"method": (index, value.__name__)}
        elif (function := _function(value)) is not None:
            if _hides_state(value):
                raise StateUnavailableError(f"{owner}.{name} is a function whose closure may hold state")
            optional["functions"][name] = function
        elif isinstance(value, deque):
            state["values"][name] = encoded(list(value), f"{owner}.{name}")
        else:
            state["values"][name] = encoded(value, f"{owner}.{name}")
    for cls in _own_classes(layer):
        plain = {name: value for name, value in vars(cls).items() if name[:2] != "__" and is_plain(value)}
        if plain:
            optional["class_values"][cls.__qualname__] = {n: encoded(v, f"{owner}.{n}") for n, v in plain.items()}
    return state | {kind: found for kind, found in optional.items() if found}


def _generator_state(generator: np.random.Generator) -> State:
    return {"kind": type(generator.bit_generator).__name__, "state": generator.bit_generator.state}


def _spaces(space: gymnasium.Space[Any]) -> Iterator[gymnasium.Space[Any]]:
    """A space, and those that it consists of."""
    yield space
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces
        for part in parts:
            yield from _spaces(part)


def _drawn(space: gymnasium.Space[Any]) -> State | None:
    """The state of the generator that a space samples by; None where it never has."""
    generator = space._np_random
    return None if generator is None else _generator_state(generator)


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
    built = (EnvSpec, mujoco.MjModel, np.dtype, type, types.ModuleType, type(threading.Lock()))
    # What draws the simulator, or names its parts; an image is drawn from its state alone.
    drawn = ("MujocoRenderer", "NamedIndexStructs", "Contexts")
    kind = type(value)
    return isinstance(value, built) or kind.__name__ in drawn or kind.__module__.startswith("pygame")


def _function(value: object) -> State | None:
    """What a function is called; None where it is none."""
    if not isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return None
    return {"name": f"{value.__module__}.{value.__qualname__}"}


def _is_method(layers: list[object], saved: State) -> bool:
    """Whether a saved method is one that a layer's class defines."""
    index, method = saved["method"]
    return isinstance(getattr(type(layers[index]), method, None), types.FunctionType)


def _hides_state(function: Any) -> bool:
    """Whether calls may change what a function of the user's own does."""
    inner = getattr(function, "__func__", function)
    return bool(getattr(inner, "__closure__", None)) and not _is_known(str(function.__module__))


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, an array, a member of an Enum, or a container of these."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(is_plain, value))
    return value is None or isinstance(value, Enum) or type(value) in (bool, int, float, str)


def encoded(value: Any, name: str) -> Any:
    """A plain value with members of Enums as their names.

    Raises:
        StateUnavailableError: it is of another kind.
    """
    if not is_plain(value):
        raise StateUnavailableError(f"{name} is a {type(value).__qualname__}, which cannot be saved")
    if isinstance(value, Enum):
        return {_ENUM: [type(value).__module__, type(value).__qualname__, value.name]}
    if isinstance(value, dict):
        return {key: encoded(item, name) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(encoded(item, name) for item in value)
    return value


_ENUM = "__enum__"


def decoded(value: Any, present: Any) -> Any:
    """The value that `encoded` was given.

    Raises:
        StateUnavailableError: it names an Enum that this process does not have.
    """
    if isinstance(value, dict) and value.keys() == {_ENUM}:
        module, qualname, name = value[_ENUM]
        return _member(module, qualname, name, present)
    if isinstance(value, dict):
        return {key: decoded(item, None) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(decoded(item, None) for item in value)
    return value


def _member(module: str, qualname: str, name: str, present: Any) -> Enum:
    found: Any = type(present)
    if (found.__module__, found.__qualname__) != (module, qualname):
        found = sys.modules.get(module)  # never imported: the environment has what it needs
        for part in qualname.split("."):
            found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Enum) and name in found.__members__):
        raise StateUnavailableError(f"{module}.{qualname}.{name} is no member of an Enum here")
    return found[name]


def restore(owner: Any, name: str, value: Any) -> None:
    """Set an attribute to a saved value; a view, and a deque, takes it in."""
    present = getattr(owner, name, None)
    if isinstance(present, deque):
        present.clear()
        present.extend(value)
    elif isinstance(present, np.ndarray) and not present.flags.owndata and _alike(present, value):
        present[...] = value  # a view: what it looks into must see the value too
    else:
        setattr(owner, name, value)


def _alike(present: npt.NDArray[Any], value: Any) -> bool:
    return isinstance(value, np.ndarray) and (present.shape, present.dtype) == (value.shape, value.dtype)


def _set_generator(layer: object, name: str, value: State) -> None:
    kind, present = value["kind"], getattr(layer, name, None)
    # The simulator's own parts may share the one that is there.
    if kind == "RandomState":
        if not isinstance(present, np.random.RandomState):
            setattr(layer, name, present := np.random.RandomState())
        present.set_state(value["state"])
        return
    if not isinstance(present, np.random.Generator) or type(present.bit_generator).__name__ != kind:
        kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
        setattr(layer, name, present := np.random.Generator({k.__name__: k for k in kinds}[kind]()))
    present.bit_generator.state = value["state"]


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
