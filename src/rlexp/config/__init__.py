"""Composing, checking and instantiating configs. Imports no torch."""

from rlexp.config.compose import NO_RESULTS, Composed, load, load_hydra, name_presets, origins
from rlexp.config.options import groups, option_file, option_text
from rlexp.config.overrides import expand_sweeps, tolerant
from rlexp.config.paths import quoted
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.reader import check_targets, flat, is_under, named_packages, read
from rlexp.config.sources import VERSION_BASE, Sources, conf_dir, new_run_path, search_path
from rlexp.config.spec import (
    TARGET,
    Config,
    Count,
    Fraction,
    Integer,
    Node,
    NonNegative,
    Positive,
    build_at,
    build_nested,
)

__all__ = [
    "NO_RESULTS",
    "TARGET",
    "VERSION_BASE",
    "Composed",
    "Config",
    "ConfigError",
    "Count",
    "Fraction",
    "Integer",
    "Node",
    "NonNegative",
    "Positive",
    "Problem",
    "Sources",
    "build_at",
    "build_nested",
    "check_targets",
    "conf_dir",
    "did_you_mean",
    "expand_sweeps",
    "flat",
    "groups",
    "is_under",
    "load",
    "load_hydra",
    "name_presets",
    "named_packages",
    "new_run_path",
    "option_file",
    "option_text",
    "origins",
    "quoted",
    "read",
    "search_path",
    "tolerant",
]
