"""Where configs come from: folders of options, and Hydra's search through them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from rlexp.config.problems import ConfigError, Problem

CONFIG_NAME = "train"
VERSION_BASE = "1.3"


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


SHIPPED = Sources()
"""The shipped options and those of installed packages alone."""


def conf_dir() -> Path:
    """The folder of shipped configs: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def search_path(sources: Sources) -> list[str]:
    """Folders that are searched after the folder of the primary config."""
    own = [] if sources.config_path is None else [conf_dir()]
    return [f"file://{folder}" for folder in (*own, *advertised().values())]


@cache
def advertised() -> dict[str, Path]:
    """Folders of options of installed packages (entry points ``rlexp.conf``), by module."""
    found = {}
    for point in entry_points(group="rlexp.conf"):
        folder = find_spec(point.value)
        if folder is not None and folder.submodule_search_locations:
            found[point.value] = Path(next(iter(folder.submodule_search_locations)))
    return found


def new_run_path(name: str, root: str = "outputs") -> Path:
    """``root/<name>/<date>_<time>_<short id>``, unique for runs that start in the same second, too."""
    return Path(root) / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


@contextmanager
def hydra_session(sources: Sources) -> Iterator[None]:
    """Hydra, initialised to search these folders, for as long as the context lasts.

    Raises:
        ConfigError: a folder or the primary config does not exist.
    """
    for flag, folder in (("--config-dir", sources.config_dir), ("--config-path", sources.config_path)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError([Problem(flag, "there is no such folder.", folder)])
    name = sources.config_name or CONFIG_NAME
    if sources.config_path is not None and not (Path(sources.config_path) / f"{name}.yaml").is_file():
        there = ", ".join(sorted(path.stem for path in Path(sources.config_path).glob("*.yaml"))) or "none"
        message = f"there is no {name}.yaml in {sources.config_path}, which has: {there}."
        raise ConfigError([Problem("--config-name", message, name)])
    resolver = "rlexp.run_dir"
    OmegaConf.register_new_resolver(resolver, lambda name: str(new_run_path(str(name))), use_cache=True, replace=True)
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


def config_loader() -> ConfigLoaderImpl:
    """The loader of the `hydra_session`."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def names(group: str, kind: ObjectType) -> list[str]:
    """The options or the groups in a group, without the copy of all sources that the loader makes to list them."""
    return config_loader().repository.get_group_options(group, kind)
