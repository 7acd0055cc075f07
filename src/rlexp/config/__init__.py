"""Schema, checks, and the one place that instantiates. Imports no torch."""

from rlexp.config.compose import (
    NO_RESULTS,
    VERSION_BASE,
    Composed,
    Sources,
    conf_dir,
    expand_sweeps,
    groups,
    load,
    load_hydra,
    new_run_path,
    option_file,
    origins,
    search_path,
    tolerant,
)
from rlexp.config.paths import quoted
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.reader import check_targets, flat, is_under, named_packages, read
from rlexp.config.spec import TARGET, Config, Count, Fraction, Integer, Node, NonNegative, Positive, build_at

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
    "check_targets",
    "conf_dir",
    "did_you_mean",
    "expand_sweeps",
    "flat",
    "groups",
    "is_under",
    "load",
    "load_hydra",
    "named_packages",
    "new_run_path",
    "option_file",
    "origins",
    "quoted",
    "read",
    "search_path",
    "tolerant",
]
