"""Observations of several entries: one NumPy array whose rows have a field for each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[Any]

OBSERVATION = "observation"
"""What the one entry of an observation without parts is called."""

RESERVED = frozenset({
    "_position",
    *("action", "action_log_prob", "action_mask", "advantage", "alpha", "beta", "collector", "done", "end_of_life"),
    *("episode_reward", "is_init", "latent", "latent_log_prob", "loc", "logits", "next", "next_features"),
    *("raw_observation", "recurrent_state", "reward", "scale", "state_action_value", "state_value", "step_count"),
    *("terminated", "truncated", "value_target"),
    *("batch_size", "device", "dtype", "names", "shape", "space", "step_mdp_static"),
})  # fmt: skip
"""What else a batch and its spec hold: no entry of an observation has one of these names."""


def row_type(space: spaces.Box | spaces.Dict) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of one observation: of a Dict ``()`` and a structured type."""
    if isinstance(space, spaces.Box):
        return space.shape, space.dtype
    return (), np.dtype([(name, box.dtype, box.shape) for name, box in space.spaces.items()], align=True)


def is_vector(shape: Sequence[int], *, floating: bool) -> bool:
    """Whether an entry is normalised, and read without an encoder: real numbers in fewer than three dimensions."""
    return floating and len(shape) < 3


def split(rows: Array) -> dict[str, Array]:
    """The entries of observations ``[...]``, each ``[..., *entry]``, as copies that lie in one piece."""
    if rows.dtype.names is None:
        return {OBSERVATION: rows.copy()}
    return {name: rows[name].copy() for name in rows.dtype.names}


def joined(entries: Mapping[str, Array], batch_dims: int) -> Array:
    """Undoes `split`: one array of rows from entries that share ``batch_dims`` leading dimensions."""
    if entries.keys() == {OBSERVATION}:
        return entries[OBSERVATION]
    fields = [(name, entry.dtype, entry.shape[batch_dims:]) for name, entry in entries.items()]
    shape = next(iter(entries.values())).shape[:batch_dims]
    rows = np.empty(shape, np.dtype(fields, align=True))
    for name, entry in entries.items():
        rows[name] = entry
    return rows
