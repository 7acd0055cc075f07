"""From a command line to plain values, composed by Hydra; an unknown name is reported with the nearest known one."""

from __future__ import annotations

import codecs
import itertools
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlexp.config.legacy import current_override
from rlexp.config.paths import alternatives as path_alternatives
from rlexp.config.paths import literal
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.spec import TARGET

CONFIG_NAME = "train"
_PRESETS = "experiment"  # the group of which no option may be chosen
VERSION_BASE = "1.3"
NO_RESULTS = ("seed", "logger", "checkpoint", "resume", "threads", "env.num_workers")
"""Settings that runs of one configuration may differ in: where results go, how many cores are used, and the seed."""


# An entry of a defaults list that is no option but what several options share.
_BASE = re.compile(r"^  - /?(base_\w+)(?:@_here_)?\n", re.MULTILINE)


@dataclass(frozen=True)
class Composed:
    """A composed config.

    Attributes:
        values: the resolved config as plain values, without Hydra's own part.
        run_dir: the run's folder by Hydra's settings.
        problems: overrides that are not in ``values``, since they name an unknown group or option.
    """

    values: dict[str, Any]
    run_dir: str
    problems: list[Problem]


def conf_dir() -> Path:
    """The folder of shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def new_run_path(name: str, root: str = "outputs") -> Path:
    """``root/<name>/<date>_<time>_<short id>``, unique for runs that start in the same second, too."""
    return Path(root) / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Sources:
    """Where configs come from, besides the shipped ones and those of installed packages.

    Attributes:
        config_dir: a folder of the user's own options, which take precedence over shipped ones of the same name.
        config_path: the folder of the primary config, such as a run's; None: the shipped one.
        config_name: the primary config; None: ``train``.
    """

    config_dir: str | None = None
    config_path: str | None = None
    config_name: str | None = None


def load(overrides: Sequence[str], sources: Sources = Sources()) -> Composed:
    """Compose the config that a command line describes and resolve it to plain values.

    Args:
        overrides: Hydra overrides (``env=hopper``, ``loss.gamma=0.97``), sweeps already expanded.
        sources: where configs come from.

    Raises:
        ConfigError: the config cannot be composed, or a value cannot be resolved.
    """
    with _hydra(sources):
        checked, problems = _tolerant(overrides, sources)
        if sources.config_path is not None and not any(text.startswith("hydra.run.dir=") for text in checked):
            checked.append("hydra.run.dir='${rlexp.run_dir:${env.name}}'")
        try:
            composed = compose(sources.config_name or CONFIG_NAME, checked, return_hydra_config=True)
            visible = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            values = OmegaConf.to_container(visible, resolve=True, throw_on_missing=True)
            run_dir = composed.hydra.run.dir
            problems += _marked(sources, composed.hydra.runtime.choices)
        except OmegaConfBaseException as error:
            raise ConfigError([*problems, *_marked(sources), _unresolved(error)]) from error
        except (ConfigCompositionException, HydraException, UnicodeDecodeError, YAMLError) as error:
            raise ConfigError([*problems, *_marked(sources), Problem("config", f"{error}")]) from error
        except RecursionError as error:
            message = "an option has itself among its defaults: one that extends a shipped option needs another name."
            raise ConfigError([*problems, Problem("config", message)]) from error
    assert isinstance(values, dict)
    return Composed({str(key): value for key, value in values.items()}, run_dir, problems)


def load_hydra(overrides: Sequence[str], sources: Sources = Sources()) -> tuple[HydraContext, DictConfig]:
    """Compose Hydra's own settings for a multirun, which describe its launcher.

    Args:
        overrides: of Hydra's settings only (``launcher=joblib``, ``hydra.launcher.n_jobs=2``).
        sources: where configs come from.

    Raises:
        ConfigError: they cannot be composed.
    """
    with _hydra(sources):
        checked, problems = _tolerant(overrides, sources)
        if problems:
            raise ConfigError(problems)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            config = hydra.compose_config(
                sources.config_name or CONFIG_NAME, checked, RunMode.MULTIRUN, with_log_configuration=False
            )
        except (OmegaConfBaseException, ConfigCompositionException, HydraException) as error:
            raise ConfigError([Problem("hydra", str(error))]) from error
        return HydraContext(hydra.config_loader, Callbacks(config)), config


def origins(overrides: Sequence[str], sources: Sources = Sources()) -> dict[str, str]:
    """Where each value of the composed config comes from: a config file, or the command line.

    Args:
        overrides: as for `load`.
        sources: where configs come from.

    Returns:
        From a value's full path (``loss.gamma``) to its file (``base_loss``) or the override that set it.
    """
    found: dict[str, str] = {}
    with _hydra(sources):
        checked, _ = _tolerant(overrides, sources)
        loader = _loader()
        defaults = loader.compute_defaults_list(sources.config_name or CONFIG_NAME, checked, RunMode.RUN)
        for default in defaults.defaults:
            file = default.config_path
            if file is not None and not file.startswith("hydra/") and (loaded := loader.repository.load_config(file)):
                values = OmegaConf.to_container(loaded.config)
                found.update(dict.fromkeys(_leaves(values, default.package or ""), file))
        for override in defaults.config_overrides:
            if not override.is_delete() and not override.key_or_group.startswith("hydra"):
                leaves = _leaves(override.value(), override.key_or_group)
                found.update(dict.fromkeys(leaves, str(override.input_line).lstrip("+")))
    return found


def _leaves(value: object, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path


def groups(sources: Sources = Sources()) -> dict[str, dict[str, str]]:
    """Every group of options, and the first line of each option's description."""
    found: dict[str, dict[str, str]] = {}
    with _hydra(sources):
        pending = [name for name in _names("", ObjectType.GROUP) if name != "hydra"]
        while pending:
            group = pending.pop(0)
            options = _names(group, ObjectType.CONFIG)
            if options:
                found[group] = {name: _description(option_file(f"{group}/{name}", sources)) for name in options}
            pending += [f"{group}/{name}" for name in _names(group, ObjectType.GROUP)]
    return dict(sorted(found.items()))


def option_file(option: str, sources: Sources = Sources()) -> Path:
    """The file of ``group/option``, or of a base such as ``base_loss``; the user's own before a shipped one.

    Raises:
        ConfigError: there is no such option.
    """
    folders = [Path(sources.config_dir)] if sources.config_dir else []
    for folder in [*folders, conf_dir(), *_advertised().values()]:
        if (path := folder / f"{option}.yaml").is_file():
            return path
    group, _, name = option.rpartition("/")
    options = groups(sources).get(group, {})
    known = did_you_mean(name, options, f"{group}/") if options else did_you_mean(group, groups(sources))
    raise ConfigError([Problem(option, f"there is no such option. {known}")])


def option_text(option: str, sources: Sources = Sources()) -> str:
    """An option's file, to copy and edit, with the settings and comments of its bases (``base_loss``) written out.

    Args:
        option: ``group/option``, or a base.
        sources: where configs come from.

    Raises:
        ConfigError: there is no such option.
    """
    header, entries = _with_bases(option, sources)
    return header + "".join(entries.values())


def _with_bases(option: str, sources: Sources) -> tuple[str, dict[str, str]]:
    """The comments at the top of an option's file, and the lines of each of its top-level keys and its bases'."""
    text = option_file(option, sources).read_text(encoding="utf-8")
    header, *rest = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)
    own = {entry.partition(":")[0]: entry for entry in rest}
    inherited: dict[str, str] = {}
    if defaults := own.pop("defaults", ""):
        for base in _BASE.findall(defaults):
            inherited |= _with_bases(base, sources)[1]
        if (left := _BASE.sub("", defaults)).strip() != "defaults:":
            header += left
    target = {TARGET: own[TARGET]} if TARGET in own else {}
    return header, target | inherited | own


def _description(path: Path) -> str:
    lines = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("@package")), "")


@cache
def _advertised() -> dict[str, Path]:
    """Folders of options of installed packages (entry points ``rlexp.conf``), by module."""
    found = {}
    for point in entry_points(group="rlexp.conf"):
        folder = find_spec(point.value)
        if folder is not None and folder.submodule_search_locations:
            found[point.value] = Path(next(iter(folder.submodule_search_locations)))
    return found


def tolerant(overrides: Sequence[str], sources: Sources = Sources()) -> list[str]:
    """The same overrides with groups and options checked, in a form in which Hydra accepts unknown keys.

    Hydra stops at the first unknown key, suggests nothing, and accepts ``+typo=1``. With every ``key=value`` as
    ``++key=value``, the schema sees all of them and reports the unknown ones together.

    Raises:
        ConfigError: an override cannot be read, or names a group or an option that does not exist.
    """
    with _hydra(sources):
        checked, problems = _tolerant(overrides, sources)
    if problems:
        raise ConfigError(problems)
    return checked


def expand_sweeps(overrides: Sequence[str], sources: Sources = Sources()) -> Iterator[list[str]]:
    """The overrides of each job of a multirun: the Cartesian product of all choices, ranges and globs.

    Args:
        overrides: as on the command line.
        sources: where the options come from that a glob matches.

    Raises:
        ConfigError: an override cannot be read, or names no values to run.
    """
    alternatives: list[list[str]] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            if (paths := path_alternatives(text)) is not None:
                alternatives.append(list(paths))
                continue
            override = _parse(literal(text))
            alternatives.append(_choices(override, text, sources) if override.is_sweep_override() else [text])
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return (list(job) for job in itertools.product(*alternatives))


def _choices(override: Override, text: str, sources: Sources) -> list[str]:
    """One override for each value of a sweep."""
    key, _, value = text.partition("=")
    if override.is_interval_sweep():
        message = (
            "has no values to run, only a range: name them, as in "
            f"{key}=0.1,0.2 or {key}=range(1,4). rlexp-search draws from ranges."
        )
        raise ConfigError([Problem(key, message, value)])
    if override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        choices = list(override.sweep_string_iterator())
    else:
        pattern = override.value()
        assert isinstance(pattern, Glob)
        options = groups(sources).get(override.key_or_group)
        if options is None:
            raise ConfigError([Problem(key, "is no group of options, which glob(...) chooses from.", value)])
        choices = pattern.filter(list(options))
    if not choices:
        raise ConfigError([Problem(key, "has no values to run: nothing matches.", value)])
    return [f"{key}={choice}" for choice in choices]


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError([Problem(text, f"cannot be read as key=value: {reason}.")]) from error


def _tolerant(overrides: Sequence[str], sources: Sources) -> tuple[list[str], list[Problem]]:
    checked: list[str] = []
    problems: list[Problem] = []
    groups = set(_names("", ObjectType.GROUP))
    for given in overrides:
        if (text := current_override(literal(given))) is None:
            continue
        try:
            override = _parse(text)
        except ConfigError as error:
            problems += error.problems
            continue
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            checked.append(text)
        elif "/" in key or key in groups:
            wrong = list(_wrong_options(override, sources))
            problems += wrong
            checked += [] if wrong or _is_no_preset(override) else [text]
        elif override.is_delete() or override.is_force_add():
            checked.append(text)
        else:
            checked.append(f"++{text.removeprefix('+')}")
    return checked, problems


def _wrong_options(override: Override, sources: Sources) -> Iterator[Problem]:
    group = override.key_or_group
    options = _names(group, ObjectType.CONFIG)
    if not options:
        yield Problem(group, "there is no such group of options.")
    elif not override.is_delete():
        value = override.value()
        choices = value if isinstance(value, list) else [value]
        if override.is_sweep_override():
            if not override.is_choice_sweep() or isinstance(value, Glob):
                yield Problem(group, "stands for several options: say --multirun.", str(override.input_line))
                return
            choices = [str(choice) for choice in override.sweep_string_iterator()]
        for choice in choices:
            choice = "null" if choice is None else choice
            if str(choice) not in options and not (group == _PRESETS and choice == "null"):
                hint = _other_suffix(f"{group}/{choice}", sources) or did_you_mean(str(choice), options)
                yield Problem(group, f"there is no such option. {hint}", str(choice))


def _is_no_preset(override: Override) -> bool:
    """Whether it says what holds anyway, in a form that Hydra does not read."""
    return override.key_or_group == _PRESETS and not override.is_delete() and override.value() is None


def _other_suffix(option: str, sources: Sources) -> str:
    """What to do about ``option.yml``, which Hydra does not see."""
    for folder in filter(None, (sources.config_dir, sources.config_path)):
        if (file := Path(folder) / f"{option}.yml").is_file():
            return f"{file} ends in .yml, and options end in .yaml: rename it."
    return ""


def _marked(sources: Sources, used: Mapping[str, Any] | None = None) -> list[Problem]:
    """The user's YAML files that begin with a byte order mark: Hydra does not see their ``# @package``.

    Args:
        sources: where configs come from.
        used: the options composed, by their groups; None where composing failed, and any file may be the reason.
    """
    problems = []
    for folder in map(Path, filter(None, (sources.config_dir, sources.config_path))):
        if used is None:
            files = sorted(path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}.yaml"))
        else:
            options = [f"{group.split('@')[0]}/{option}.yaml" for group, option in used.items()]
            files = [folder / f"{sources.config_name or CONFIG_NAME}.yaml", *(folder / option for option in options)]
        for file in files:
            try:
                start = file.read_bytes()[:3]
            except OSError:
                continue
            if start == codecs.BOM_UTF8 or start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                message = "begins with a byte order mark, which YAML here must not: save it as UTF-8 without BOM."
                problems.append(Problem(str(file), message))
    return problems


def _unresolved(error: OmegaConfBaseException) -> Problem:
    key = error.full_key or "config"
    if "MissingMandatoryValue" in type(error).__name__ or "missing" in str(error).lower():
        return Problem(key, f"has no value yet: set it with {key}=...")
    return Problem(key, f"{str(error).splitlines()[0]}.")


def search_path(sources: Sources) -> list[str]:
    """Folders that are searched after the folder of the primary config."""
    own = [] if sources.config_path is None else [conf_dir()]
    return [f"file://{folder}" for folder in (*own, *_advertised().values())]


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def _names(group: str, kind: ObjectType) -> list[str]:
    """The options or the groups in a group, without the copy of all sources that the loader makes to list them."""
    return _loader().repository.get_group_options(group, kind)


@contextmanager
def _hydra(sources: Sources) -> Iterator[None]:
    for flag, folder in (("--config-dir", sources.config_dir), ("--config-path", sources.config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError([Problem(flag, "there is no such folder.", folder)])
    name = sources.config_name or CONFIG_NAME
    if sources.config_path is not None and not (Path(sources.config_path) / f"{name}.yaml").is_file():
        there = ", ".join(sorted(path.stem for path in Path(sources.config_path).glob("*.yaml"))) or "none"
        message = f"there is no {name}.yaml in {sources.config_path}, which has: {there}."
        raise ConfigError([Problem("--config-name", message, name)])
    OmegaConf.register_new_resolver("rlexp.run_dir", lambda name: str(new_run_path(name)), use_cache=True, replace=True)
    primary = Path(sources.config_path).resolve() if sources.config_path else conf_dir()
    path = create_config_search_path(str(primary))
    if sources.config_dir is not None:
        path.prepend("command-line", f"file://{Path(sources.config_dir).resolve()}")
    for folder in search_path(sources):
        path.prepend("rlexp", folder, anchor=SearchPathQuery(provider="schema"))
    version.setbase(VERSION_BASE)
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="rlexp", config_search_path=path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
