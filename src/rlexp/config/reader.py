"""From plain values to checked specs: every problem at once, each under its full path."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlexp.config.legacy import current_target
from rlexp.config.problems import NO_SETTING, ConfigError, Problem, did_you_mean
from rlexp.config.spec import TARGET, Config, Node, locate, path_of
from rlexp.config.trust import ALLOWED, Trust, beyond_limits

S = TypeVar("S", bound=Config)

BUILTIN = ("rlexp", "torch", "torchrl", "tensordict", "gymnasium", "ray")
"""Packages that a user's own config names as a matter of course: naming them there trusts nothing else in them."""


def read(
    schema: type[S],
    values: Mapping[str, Any],
    known: Sequence[Problem] = (),
    trust: Collection[str] | None = None,
    own: Mapping[str, Any] | None = None,
) -> S:
    """Check plain values against a schema; each ``_target_`` decides the schema of its own node.

    Args:
        schema: what the whole must be.
        values: plain values.
        known: problems found before, reported with the others.
        trust: for values that are not the user's own, such as a checkpoint's: the packages that they may have this
            process import, beside the allow list (`rlexp.config.trust`). None trusts them wholly.
        own: values that are the user's own; what is equal to them at the same path needs no trust.

    Raises:
        ConfigError: with every problem, each under its full path.
    """
    trusted = None if trust is None else Trust(trust, own)
    reader = _Reader(known, trusted)
    if trusted is not None and not trusted.of("rlexp"):
        reader.problems += beyond_limits((k, v) for k, v in flat(values) if not reader.is_own(k, v))
        if reader.problems:
            raise ConfigError(reader.problems)
    spec = reader.read(schema, values, "")
    if reader.problems or not isinstance(spec, schema):
        raise ConfigError([_in_a_group(problem, values) for problem in reader.problems])
    return spec


def _in_a_group(problem: Problem, values: Mapping[str, Any]) -> Problem:
    """The same problem, or, of ``clip_epsilon`` for ``loss.clip_epsilon``, one that suggests the group."""
    found = [key for key, _ in flat(values) if key.endswith(f".{problem.key}")]
    if "." in problem.key or not found or not problem.message.startswith(NO_SETTING):
        return problem
    return Problem(problem.key, f"{NO_SETTING} Did you mean {' or '.join(found)}?", problem.value)


def named_packages(values: object, path: str = "") -> set[str]:
    """The packages of every ``_target_`` and of ``env.id=module:id`` in plain values: what a user trusts by naming it.

    Args:
        values: nested or flat.
        path: where in the config they stand.
    """
    if isinstance(values, list):
        return set().union(*(named_packages(value, path) for value in values))
    if not isinstance(values, Mapping):
        return set()
    found: set[str] = set()
    for key, value in values.items():
        *_, above, name = f".{path}.{key}".split(".")
        if name == TARGET or ((above, name) == ("env", "id") and ":" in str(value)):
            found.add(str(value).partition(":")[0].split(".")[0])
        found |= named_packages(value, f"{path}.{key}")
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting in nested plain values, under its full path; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_under(key: str, nodes: Sequence[str]) -> bool:
    """Whether a full path is one of these settings, or a setting of one of these nodes."""
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def check_targets(spec: Config) -> None:
    """Import every target below a spec and bind its arguments; builds nothing.

    Raises:
        ConfigError: with every target that does not exist, every argument that its target would not read, and all that
            training needs and this machine lacks.
    """
    if problems := [*spec.target_problems(), *spec.missing_requirements()]:
        raise ConfigError(problems)


class _Reader:
    def __init__(self, known: Iterable[Problem], trust: Trust | None) -> None:
        self.problems = list(known)
        self._trust = trust

    def is_own(self, path: str, value: object) -> bool:
        """Whether a value needs no trust: all are the user's own, or this one is."""
        return self._trust is None or self._trust.is_own(path, value)

    def read(self, schema: type[Config], values: Mapping[str, Any], prefix: str) -> Config | None:
        read: dict[str, Any] = {}
        failed: set[str] = set()
        for name, value in values.items():
            key = str(name)
            found = len(self.problems)
            field = schema.model_fields.get(key)
            read[key] = self._value(field.annotation if field else None, value, f"{prefix}{key}.")
            if len(self.problems) > found:
                failed.add(key)
        try:
            spec = schema.model_validate(read)
        except ValidationError as error:
            details = [detail for detail in error.errors() if detail["loc"][0] not in failed]
            self.problems += _problems(schema, details, prefix)
            return None
        blocked = [self._block(f"{prefix}{key}", package, value) for key, package, value in self._reached(spec, prefix)]
        if not blocked and not failed:
            self.problems += [p.under(prefix) for p in spec.problems()]
        return spec

    def _value(self, annotation: object, value: object, prefix: str) -> object:
        """Read a node; its target is imported only where a `Config` is expected, to find its schema."""
        if isinstance(value, list):
            return [self._value(None, item, f"{prefix}{i}.") for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        expected = annotation if inspect.isclass(annotation) and issubclass(annotation, Config) else None
        if TARGET not in value:
            if expected is not None:
                return self.read(expected, value, prefix)
            named = get_args(annotation)[1] if get_origin(annotation) is dict else None
            if (
                inspect.isclass(named)
                and issubclass(named, Config | Node)
                and (unbuilt := list(_unbuilt(value, prefix)))
            ):
                self.problems += unbuilt
                return value
            return {str(key): self._value(named, item, f"{prefix}{key}.") for key, item in value.items()}
        if not isinstance(value[TARGET], str):
            self.problems.append(Problem(f"{prefix}{TARGET}", "must be a dotted path.", _shown(value[TARGET])))
            return value
        target = current_target(value[TARGET])
        arguments = {str(key): item for key, item in value.items() if key != TARGET}
        if expected is None:
            return self._node(value, target, arguments, prefix)
        if not (self._trust is None or self._trust.may_read(target) or self.is_own(f"{prefix}{TARGET}", value[TARGET])):
            self._block(f"{prefix}{TARGET}", target.partition(".")[0], target)
            return value
        try:
            found = locate(target)
        except ConfigError as error:
            self.problems += [p.under(prefix) for p in error.problems]
            return value
        if not (inspect.isclass(found) and issubclass(found, expected)):
            message = f"is not a kind of {path_of(expected)}, which this group builds."
            self.problems.append(Problem(f"{prefix}{TARGET}", message, target))
            return value
        return self.read(found, arguments, prefix)

    def _node(self, value: Mapping[str, Any], target: str, arguments: dict[str, Any], prefix: str) -> Node | None:
        if self._trust is not None and not self._trust.is_own(prefix.removesuffix("."), value):
            if not self._trust.may_build(target):
                self._block(f"{prefix}{TARGET}", target.partition(".")[0], target)
                return None
            if target not in ALLOWED and not self._defined_where_trusted(target, prefix):
                return None
            found = list(self._trust.bad_arguments(target, arguments))
            for key, package, shown in found:
                self._block(f"{prefix}{key}", package, shown)
            if found:
                return None
        return Node(target=target, arguments={k: self._value(None, v, f"{prefix}{k}.") for k, v in arguments.items()})

    def _defined_where_trusted(self, target: str, prefix: str) -> bool:
        """Whether what a trusted package calls by this name is its own: it may have imported it from elsewhere."""
        assert self._trust is not None
        try:
            found = locate(target)
        except ConfigError as error:
            self.problems += [p.under(prefix) for p in error.problems]
            return False
        if not (inspect.isclass(found) or inspect.isroutine(found)):
            return True
        module = getattr(found, "__module__", None) or ""
        if self._trust.of(module) or f"{module}.{found.__name__}" in ALLOWED:
            return True
        self._block(f"{prefix}{TARGET}", module.partition(".")[0], f"{target} ({module}.{found.__name__})")
        return False

    def _reached(self, spec: Config, prefix: str) -> Iterator[tuple[str, str, str]]:
        """The settings that reach code which is neither listed nor trusted, with its package and the value."""
        if self._trust is None:
            return
        for key, package, value in spec.imports():
            if not (self._trust.may_import(package) or self.is_own(f"{prefix}{key}", value)):
                yield key, package.partition(".")[0], value

    def _block(self, key: str, package: str, value: str) -> str:
        message = "is blocked: it would run code that is not rlexp's, and a saved config may come from anyone."
        remedy = f" If you trust it, say trust=[{package}]." if package.isidentifier() else ""
        self.problems.append(Problem(key, f"{message}{remedy}", _shown(value)))
        return key


def _unbuilt(parts: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    """Parts that no ``_target_`` builds: their names are misspelt, or stand for nothing yet."""
    built = [name for name, part in parts.items() if isinstance(part, Mapping) and TARGET in part]
    for name in parts:
        if name not in built:
            yield Problem(f"{prefix}{name}", f"has no {TARGET}. {did_you_mean(name, built, prefix)}")


def _problems(schema: type[BaseModel], details: Iterable[ErrorDetails], prefix: str) -> Iterator[Problem]:
    """One problem a setting: a union reports one for each of its types, reported here as alternatives."""
    by_setting: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        by_setting.setdefault(str(detail["loc"][0]), []).append(detail)
    for name, found in by_setting.items():
        if len(found) == 1 or isinstance(found[0]["loc"][-1], int):
            yield from (_problem(schema, detail, prefix) for detail in found)
        else:
            message = " or ".join(dict.fromkeys(_message(detail) for detail in found)).replace(" or must be ", " or ")
            yield Problem(prefix + name, f"{message}.{_as_number(found[0], prefix + name)}", _shown(found[0]["input"]))


def _problem(schema: type[BaseModel], detail: ErrorDetails, prefix: str) -> Problem:
    key = prefix + ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return Problem(key, f"{NO_SETTING} {did_you_mean(str(detail['loc'][-1]), schema.model_fields, prefix)}")
    if detail["type"] == "missing":
        return Problem(key, "is required.")
    return Problem(key, f"{_message(detail)}.{_as_number(detail, key)}", _shown(detail["input"]))


def _as_number(detail: ErrorDetails, key: str) -> str:
    """What to do about a text that reads like the number that is wanted."""
    text = detail["input"]
    if not isinstance(text, str) or not detail["type"].startswith(("int", "float", "bool")):
        return ""
    try:
        float(text)
    except ValueError:
        if text.lower() not in ("true", "false"):
            return ""
    return (
        f" It is the text {text!r}, as quoted values and environment variables are: convert it, "
        f"{key}='${{oc.decode:${{oc.env:NAME}}}}', these quotes included."
    )


def _message(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type", "is_instance_of"):
        return f"must be a node with a {TARGET}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"must be {message.removeprefix('Input should be ')}" if message.startswith("Input should be ") else message


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) and not value else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
