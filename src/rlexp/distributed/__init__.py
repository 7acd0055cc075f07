"""The learners that train one run together, each in a process of its own. Imports no torch."""

from rlexp.distributed.group import (
    ALONE,
    LEARNERS,
    POSITION,
    Group,
    GroupError,
    Taken,
    launched,
    process_name,
    train_command,
)

__all__ = [
    "ALONE",
    "LEARNERS",
    "POSITION",
    "Group",
    "GroupError",
    "Taken",
    "launched",
    "process_name",
    "train_command",
]
