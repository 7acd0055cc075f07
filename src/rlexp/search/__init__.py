"""Search: many trainings to find settings."""

from rlexp.search.config import SearchConfig, read_search

__all__ = ["SearchConfig", "read_search"]
