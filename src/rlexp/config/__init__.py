"""Schema, checks, and the one place that instantiates. Imports no torch."""

from rlexp.config.compose import (
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
    quoted,
    search_path,
    tolerant,
)
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.reader import check_targets, flat, named_packages, read
from rlexp.config.spec import TARGET, Count, Fraction, Integer, Node, NonNegative, Positive, Spec, build_at

__all__ = [
    "TARGET",
    "VERSION_BASE",
    "Composed",
    "ConfigError",
    "Count",
    "Fraction",
    "Integer",
    "Node",
    "NonNegative",
    "Positive",
    "Problem",
    "Sources",
    "Spec",
    "build_at",
    "check_targets",
    "conf_dir",
    "did_you_mean",
    "expand_sweeps",
    "flat",
    "groups",
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
