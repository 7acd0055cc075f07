"""Values of attributes, as they are saved and made anew: numbers, text, arrays, containers of these, and generators.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from rlexp.envs.saving import State, StateUnavailableError


@dataclass
class Seen:
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


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, an array, a member of an Enum, or a container of these."""
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
    if isinstance(value, Mapping):
        return type(value) is dict and all(type(k) in (bool, int, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(map(is_plain, value))
    return value is None or isinstance(value, Enum) or type(value) in (bool, int, float, str)


def encoded(value: Any, name: str, seen: Seen, *, own: bool) -> Any:
    """A plain value, or a deque of such, with members of Enums as their names, and references to what was there before.

    Raises:
        StateUnavailableError: it is of another kind.
    """
    if not is_plain(list(value) if type(value) is deque else value):
        raise StateUnavailableError(f"{name} is a {type(value).__qualname__}, which cannot be saved")
    if isinstance(value, Enum):
        return {_ENUM: [type(value).__module__, type(value).__qualname__, value.name]}
    if isinstance(value, tuple):
        return tuple(encoded(item, name, seen, own=own) for item in value)
    if not isinstance(value, dict | list | deque | np.ndarray):
        return value
    if own and isinstance(value, np.ndarray):
        seen.arrays.setdefault(id(value), (value, name))
    if (reference := seen.reference(value)) is not None:
        return reference
    if isinstance(value, np.ndarray):
        by_column = value.flags.f_contiguous and not value.flags.c_contiguous  # which sums in another order
        return {_BY_COLUMN: value.T} if by_column else value
    if isinstance(value, dict):
        return {key: encoded(item, name, seen, own=own) for key, item in value.items()}
    items = [encoded(item, name, seen, own=own) for item in value]
    return {_DEQUE: [items, value.maxlen]} if isinstance(value, deque) else items


_ENUM, _DEQUE, _SAME, _BY_COLUMN = "__enum__", "__deque__", "__same__", "__by_column__"


def decoded(value: Any, present: Any, made: list[Any]) -> Any:
    """The value that `encoded` was given; what is mutable is added to ``made``.

    Raises:
        StateUnavailableError: it names an Enum that this process does not have, or a value that was not there before.
    """
    if isinstance(value, dict):
        if value.keys() == {_ENUM}:
            module, qualname, name = value[_ENUM]
            return _member(module, qualname, name, present)
        if value.keys() == {_SAME}:
            return _made(value[_SAME], made)
        if value.keys() == {_BY_COLUMN}:
            made.append(array := value[_BY_COLUMN].T)
            return array
        if value.keys() == {_DEQUE}:
            items, length = value[_DEQUE]
            made.append(queue := deque[Any](maxlen=length))
            queue.extend(decoded(item, None, made) for item in items)
            return queue
        made.append(mapping := dict[Any, Any]())
        mapping.update((key, decoded(item, None, made)) for key, item in value.items())
        return mapping
    if isinstance(value, list):
        made.append(sequence := list[Any]())
        sequence.extend(decoded(item, None, made) for item in value)
        return sequence
    if isinstance(value, tuple):
        return tuple(decoded(item, None, made) for item in value)
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


def restore(owner: Any, name: str, value: Any) -> None:
    """Set an attribute to what `decoded` gave; a view of an array takes it in."""
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


GENERATORS = np.random.Generator | np.random.RandomState


def generator_state(generator: np.random.Generator | np.random.RandomState, seen: Seen) -> State:
    """What `set_generator` makes the same generator of, or a reference to one that was there before."""
    if (reference := seen.reference(generator)) is not None:
        return reference
    if isinstance(generator, np.random.RandomState):
        return {"kind": "RandomState", "state": generator.get_state(legacy=False)}
    return {"kind": type(generator.bit_generator).__name__, "state": generator.bit_generator.state}


def set_generator(owner: Any, name: str, value: State, made: list[Any]) -> None:
    """Set an attribute to the generator that `generator_state` was given, and add it to ``made``."""
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


def check_views(arrays: Iterable[tuple[npt.NDArray[Any], str]]) -> None:
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
