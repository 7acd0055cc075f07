"""Hydra's composition of the shipped options, which takes a fifth of a second, once for each choice of them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlexp.config import conf_dir

load_file = OmegaConf.load


def copy_shipped() -> None:
    """Have Hydra copy the files that rlexp and Hydra itself ship: they are parsed here, and not with each config."""
    folders = (conf_dir(), Path(hydra.__file__).parent)
    parsed = {str(path): load_file(path) for folder in folders for path in folder.rglob("*.yaml")}

    def load(file: Any) -> Any:
        found = parsed.get(getattr(file, "name", ""))
        return load_file(file) if found is None else copy.deepcopy(found)

    OmegaConf.load = load  # type: ignore[assignment, method-assign]


def compose_once(config_name: str, overrides: list[str], return_hydra_config: bool) -> DictConfig:
    """As `hydra.compose`: options are composed the first time, and settings applied to a copy, as Hydra applies them.

    What comes from other folders than the shipped one, or is about Hydra itself, is left to Hydra.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    parsed = OverridesParser.create().parse_overrides(overrides)
    folders = {item.path for item in loader.get_search_path().get_path() if str(item.path).startswith(("file:", "/"))}
    if {Path(str(folder).removeprefix("file://")) for folder in folders} != {conf_dir()} or any(
        each.is_sweep_override() or each.key_or_group.split(".")[0].split("/")[0] == "hydra" for each in parsed
    ):
        return compose(config_name, overrides, return_hydra_config)
    options = [
        text
        for text, each in zip(overrides, parsed, strict=True)
        if loader.repository.group_exists(each.key_or_group) and not isinstance(each.value(), dict)
    ]
    settings = [each for text, each in zip(overrides, parsed, strict=True) if text not in options]
    composed = copy.deepcopy(_composed(config_name, tuple(options), return_hydra_config))
    loader._apply_overrides_to_config(settings, composed)
    return composed


@cache
def _composed(config_name: str, options: tuple[str, ...], return_hydra_config: bool) -> DictConfig:
    return compose(config_name, list(options), return_hydra_config)
