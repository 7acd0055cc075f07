"""What can be wrong with a run's files."""

from __future__ import annotations

from rlexp.errors import RlexpError


class CheckpointError(RlexpError):
    """A checkpoint is missing, damaged, or of another format; the message names it."""


class PrunedError(CheckpointError):
    """A checkpoint was removed while it was read."""
