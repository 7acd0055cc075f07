"""Search for hyperparameters by many trainings."""

from rlexp.search.config import SearchConfig, read_search

__all__ = ["SearchConfig", "read_search"]
