"""Schema, checks, and the one place that instantiates. Imports no torch."""

from rlexp.config.compose import VERSION_BASE, Composed, conf_dir, expand_sweeps, load, new_run_path, tolerant
from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.spec import (
    Count,
    Fraction,
    Integer,
    Node,
    NonNegative,
    Positive,
    Spec,
    locate,
    read,
)

__all__ = [
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
    "Spec",
    "conf_dir",
    "did_you_mean",
    "expand_sweeps",
    "load",
    "locate",
    "new_run_path",
    "read",
    "tolerant",
]
