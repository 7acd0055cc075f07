"""Typed, immutable descriptions of what a run builds, and the one place that instantiates.

A config node with a ``_target_`` becomes a `Spec` where a group expects one (a pydantic model, checked in milliseconds,
torch not imported), and elsewhere a `Node`, a call of any callable (checked against its signature when it is built).
Both are plain data: they pickle, compare and can be sent to another process.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from rlexp.config.problems import ConfigError, Problem, did_you_mean

TARGET = "_target_"


def _integral(value: object) -> object:
    """Accept ``1e6`` where a whole number is meant: nothing is lost by it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integral)]
Count = Annotated[Integer, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Spec(BaseModel):
    """Base of every schema: immutable, strict, no unknown names, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Rules across this spec's own settings; keys are relative to the spec."""
        return iter(())

    def to_dict(self) -> dict[str, Any]:
        """The config node that this spec was read from: plain values, ``_target_`` first."""
        target = {} if type(self).__module__ == "rlexp.experiment" else {TARGET: _path_of(type(self))}
        return target | {name: _plain(getattr(self, name)) for name in type(self).model_fields}


class Node(BaseModel):
    """A call that a config describes: any importable callable and its keyword arguments."""

    model_config = ConfigDict(frozen=True)

    target: str
    arguments: dict[str, Any]

    def problems(self) -> Iterator[Problem]:
        """Bind the arguments against the target's signature; imports the target."""
        parameters = inspect.signature(locate(self.target)).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in self.arguments:
            if name not in parameters and not takes_any:
                yield Problem(name, f"{self.target} has no such parameter. {did_you_mean(name, parameters)}")

    def build(self, **live: object) -> Any:
        """Call the target with the config's arguments and the live objects.

        Raises:
            ConfigError: an argument is not one of the target's, or the target refuses its arguments.
        """
        if found := list(self.problems()):
            raise ConfigError(found)
        try:
            return locate(self.target)(**self.arguments, **live)
        except (TypeError, ValueError) as error:
            raise ConfigError([Problem(TARGET, f"refused its arguments: {error}", self.target)]) from error

    def to_dict(self) -> dict[str, Any]:
        """The config node that this call was read from."""
        return {TARGET: self.target, **self.arguments}


S = TypeVar("S", bound=BaseModel)


def locate(path: str) -> Callable[..., Any]:
    """Import the object at a dotted path.

    Raises:
        ConfigError: the module or the name in it does not exist, or is not callable.
    """
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, ValueError) as error:
        raise ConfigError([Problem(TARGET, f"cannot be imported: {error}.", path)]) from error
    except AttributeError as error:
        hint = did_you_mean(name, (n for n in dir(importlib.import_module(module_name)) if n[0] != "_"))
        raise ConfigError([Problem(TARGET, f"{module_name} has no {name!r}. {hint}", path)]) from error
    if not callable(found):
        raise ConfigError([Problem(TARGET, "is not a class or function.", path)])
    return found  # type: ignore[no-any-return]


def read(cls: type[S], data: Mapping[str, Any], known: Sequence[Problem] = ()) -> S:
    """Check a plain mapping against a schema; nested ``_target_`` nodes decide their own.

    Args:
        cls: the schema.
        data: plain values.
        known: problems found before, to be told with the others.

    Raises:
        ConfigError: with every problem, each under its full path.
    """
    problems = list(known)
    spec = _read(cls, data, "", problems)
    if problems or not isinstance(spec, cls):
        raise ConfigError(problems)
    return spec


def _read(cls: type[BaseModel], data: Mapping[str, Any], prefix: str, problems: list[Problem]) -> BaseModel | None:
    values: dict[str, Any] = {}
    failed: set[str] = set()
    for key, value in data.items():
        found = len(problems)
        field = cls.model_fields.get(key)
        values[key] = _read_value(field.annotation if field else None, value, f"{prefix}{key}.", problems)
        if len(problems) > found:
            failed.add(key)
    try:
        spec = cls.model_validate(values)
    except ValidationError as error:
        problems.extend(_problem(cls, d, prefix) for d in error.errors() if d["loc"][0] not in failed)
        return None
    if isinstance(spec, Spec) and not failed:
        problems.extend(Problem(f"{prefix}{p.key}", p.message, p.value) for p in spec.problems())
    return spec


def _read_value(annotation: object, value: object, prefix: str, problems: list[Problem]) -> object:
    """Read what a ``_target_`` says; only where a `Spec` is expected is the target imported to find its schema."""
    if not isinstance(value, Mapping):
        return value
    if not (inspect.isclass(annotation) and issubclass(annotation, Spec)):
        if TARGET in value:
            return Node(target=str(value[TARGET]), arguments={k: v for k, v in value.items() if k != TARGET})
        return {key: _read_value(None, item, f"{prefix}{key}.", problems) for key, item in value.items()}
    schema = annotation
    if TARGET in value:
        try:
            target = locate(str(value[TARGET]))
        except ConfigError as error:
            problems.extend(Problem(f"{prefix}{p.key}", p.message, p.value) for p in error.problems)
            return value
        if not (inspect.isclass(target) and issubclass(target, annotation)):
            message = f"is not a kind of {_path_of(annotation)}, which this group builds."
            problems.append(Problem(f"{prefix}{TARGET}", message, str(value[TARGET])))
            return value
        schema = target
    return _read(schema, {key: item for key, item in value.items() if key != TARGET}, prefix, problems)


def _problem(cls: type[BaseModel], detail: ErrorDetails, prefix: str) -> Problem:
    *parents, last = [str(part) for part in detail["loc"]]
    key = prefix + ".".join([*parents, last])
    if detail["type"] == "extra_forbidden":
        siblings = cls.model_fields if not parents else _fields_at(cls, parents)
        hint = did_you_mean(last, siblings, prefix + "".join(f"{part}." for part in parents))
        return Problem(key, f"there is no such setting. {hint}")
    if detail["type"] == "missing":
        return Problem(key, "is required.")
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if message != detail["msg"] and detail["msg"].startswith("Input"):
        message = f"must be {message}"
    return Problem(key, f"{message}.", _shown(detail["input"]))


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    field = cls.model_fields.get(path[0])
    nested = field.annotation if field is not None else None
    if not (inspect.isclass(nested) and issubclass(nested, BaseModel)):
        return []
    return list(nested.model_fields) if len(path) == 1 else _fields_at(nested, path[1:])


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) and not value else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path_of(cls: type) -> str:
    """Where users import the class from: the package that re-exports it, else its module."""
    package = cls.__module__.rsplit(".", 1)[0]
    exported = getattr(importlib.import_module(package), cls.__name__, None)
    return f"{package if exported is cls else cls.__module__}.{cls.__name__}"


def _plain(value: object) -> Any:
    if isinstance(value, Spec | Node):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
