"""Typed, immutable descriptions of what a run builds, and the one place that instantiates.

A config node with a ``_target_`` becomes a `Config` where a group expects one (a pydantic model, checked in
milliseconds without torch), and elsewhere a `Node`, a call of any callable (checked against its signature when built).
Both are plain data: they pickle, compare and can be sent to another process.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

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


class Config(BaseModel):
    """Base of every schema: immutable, strict, no unknown names, no NaN or infinity.

    Attributes:
        builds: paths of the classes that the settings are handed to, under the same names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    builds: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> Iterator[Problem]:
        """Rules across this spec's own settings; keys are relative to the spec."""
        return iter(())

    def missing_requirements(self) -> Iterator[Problem]:
        """What training with these settings needs and this machine lacks; keys are relative to the spec.

        They are not checked where a policy that was trained elsewhere is only evaluated.
        """
        return iter(())

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """The settings that reach code: each one's key, relative to the spec, the package that it reaches, its value.

        A setting reaches code where it names a module, a file, an address or a program. Out of a config that is not the
        user's own it is read only where the package is trusted.
        """
        return iter(())

    def target_problems(self) -> Iterator[Problem]:
        """What is wrong with the targets below this spec, each of which is imported; keys are relative to the spec."""
        for name in type(self).model_fields:
            yield from _target_problems(getattr(self, name), name)

    def to_dict(self) -> dict[str, Any]:
        """The config node that this spec was read from: plain values, ``_target_`` first."""
        values: dict[str, Any] = {}
        if type(self).__module__ != "rlexp.experiment":
            values[TARGET] = path_of(type(self))
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            values[name] = _plain(value)
            if isinstance(value, Config) and type(value) is field.annotation:
                values[name].pop(TARGET, None)  # it can be nothing else, and no config says it
        return values


@dataclass(frozen=True)
class Node:
    """A call that a config describes: any importable callable and its keyword arguments."""

    target: str
    arguments: dict[str, Any]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept nothing but a `Node`: pydantic would build one from a plain mapping, whose trust was not checked."""
        return core_schema.is_instance_schema(cls)

    def problems(self) -> Iterator[Problem]:
        """Bind the arguments against the target's signature; imports the target."""
        try:
            accepted = parameters_of(locate(self.target))
        except ConfigError as error:
            yield from error.problems
            return
        if accepted is not None:
            for name in self.arguments.keys() - accepted:
                yield Problem(name, f"{self.target} has no such parameter. {did_you_mean(name, accepted)}")

    def build(self, *live: object, **named: object) -> Any:
        """Call the target with live objects and the config's arguments, nested nodes built first.

        Raises:
            ConfigError: an argument is not one of the target's, or the target refuses its arguments.
        """
        if found := list(self.problems()):
            raise ConfigError(found)
        arguments = {key: build_nested(value) for key, value in self.arguments.items()}
        try:
            return locate(self.target)(*live, **named, **arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError([Problem(TARGET, f"refused its arguments: {error}", self.target)]) from error

    def to_dict(self) -> dict[str, Any]:
        """The config node that this call was read from."""
        return {TARGET: self.target, **{key: _plain(value) for key, value in self.arguments.items()}}


T = TypeVar("T")


def build_at(key: str, build: Callable[[], T]) -> T:
    """Build a part; what is wrong with it is reported under its full path.

    Raises:
        ConfigError: as ``build`` raises it.
    """
    try:
        return build()
    except ConfigError as error:
        raise ConfigError([p.under(f"{key}.") for p in error.problems]) from error


def locate(path: str) -> Callable[..., Any]:
    """Import the class or function at a dotted path.

    Raises:
        ConfigError: the module or the name in it does not exist, or is not callable.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module raises while it is imported
        reason = str(error) if isinstance(error, ImportError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError([Problem(TARGET, f"cannot be imported: {reason}.", path)]) from error
    try:
        found = getattr(module, name)
    except AttributeError as error:
        if module_name == "__main__":
            message = "is not in the script that this process runs: move it from yours into a module, and name that."
            raise ConfigError([Problem(TARGET, message, path)]) from error
        hint = did_you_mean(name, (n for n in dir(module) if not n.startswith("_")))
        raise ConfigError([Problem(TARGET, f"{module_name} has no {name!r}. {hint}", path)]) from error
    if not callable(found):
        raise ConfigError([Problem(TARGET, "is not a class or function.", path)])
    return found  # type: ignore[no-any-return]


def parameters_of(target: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword arguments that a callable reads, or None where it takes any.

    A class whose constructor takes ``**kwargs`` hands them to its bases: those are asked in turn, so that a name that
    the last of them would swallow in silence is not accepted.
    """
    names: set[str] = set()
    constructors: list[Callable[..., Any]] = [target]
    if inspect.isclass(target):
        constructors = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    for constructor in constructors:
        parameters = inspect.signature(constructor).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {"self"}
        if constructor is target or _forwards_to_a_simulator(target):
            return None
    return names - {"self"}


def _forwards_to_a_simulator(target: Callable[..., Any]) -> bool:
    """Environments of torchrl pass what they do not know to the simulator's own constructor."""
    return any(base.__name__ == "EnvBase" for base in inspect.getmro(target)) if inspect.isclass(target) else False


def path_of(cls: type) -> str:
    """Where users import a class from: the outermost package that re-exports it, else its module."""
    parts = cls.__module__.split(".")
    packages = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    exporting = (name for name in packages if getattr(importlib.import_module(name), cls.__name__, None) is cls)
    return f"{next(exporting, cls.__module__)}.{cls.__name__}"


def _target_problems(value: object, path: str) -> Iterator[Problem]:
    if isinstance(value, Config):
        yield from (problem.under(f"{path}.") for problem in value.target_problems())
    elif isinstance(value, Node):
        yield from (problem.under(f"{path}.") for problem in value.problems())
        yield from _target_problems(value.arguments, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _target_problems(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _target_problems(item, f"{path}.{i}")


def build_nested(value: Any) -> Any:
    """A value in which every `Node`, however deep in dicts and lists, is built.

    Raises:
        ConfigError: one cannot be built.
    """
    if isinstance(value, Node):
        return value.build()
    if isinstance(value, dict):
        return {key: build_nested(item) for key, item in value.items()}
    return [build_nested(item) for item in value] if isinstance(value, list) else value


def _plain(value: object) -> Any:
    if isinstance(value, Config | Node):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
