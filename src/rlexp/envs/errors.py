"""What simulators raise. Imports nothing."""

from __future__ import annotations


class SimulatorError(Exception):
    """A simulator failed, hangs or returns what it must not, or its process died; the message says which and why."""


class UnsuitableEnvError(Exception):
    """A simulator cannot be brought into the form that rlexp trains on; the message says why."""
