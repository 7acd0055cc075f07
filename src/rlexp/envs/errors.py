"""What simulators raise."""

from __future__ import annotations

from rlexp.errors import RlexpError


class SimulatorError(RlexpError):
    """A simulator failed, hangs or returns what it must not, or its process died; the message says which and why."""


class UnsuitableEnvError(Exception):
    """A simulator cannot be brought into the form that rlexp trains on; the message says why."""
