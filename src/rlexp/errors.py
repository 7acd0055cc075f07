"""The base of what a user can act on. Imports nothing."""

from __future__ import annotations


class RlexpError(Exception):
    """A fault whose message says all that a user needs: commands print it in place of a traceback."""
