"""Domain randomisation: factors of a MuJoCo model's fields, drawn anew for each episode (Peng et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch

from rlexp.envs.mujoco.task import Array

Ranges = Mapping[str, tuple[float, float]]


def randomizable() -> list[str]:
    """The fields that a factor makes sense for: those of floating-point numbers that `mujoco.batch` can tell apart."""
    empty = mujoco.MjModel.from_xml_string("<mujoco/>")
    found = []
    for name in MODEL_FIELDS:
        value = getattr(empty.opt, name.removeprefix("opt.")) if name.startswith("opt.") else getattr(empty, name, None)
        if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            found.append(name)
    return sorted(found)


class Randomization:
    """Scales fields of the model for each simulation of a batch.

    Each field has one factor per simulation, uniform in its range; the whole field is multiplied by it. A factor of
    ``body_mass`` multiplies ``body_inertia`` as well, beside one of its own, so that the bodies keep their shapes.

    Args:
        batch: its model fields become those of each simulation.
        ranges: for each name in ``mujoco.MjModel`` the smallest and the largest factor.

    Attributes:
        factors: of this episode ``[num_envs, len(ranges)]``, in the order of the names.
    """

    def __init__(self, batch: Batch, ranges: Ranges) -> None:
        names = sorted(ranges)
        self._batch = batch
        self._low, self._high = np.array([ranges[name] for name in names], np.float64).reshape(-1, 2).T
        scaled = [(name, k) for k, name in enumerate(names)]
        scaled += [("body_inertia", names.index("body_mass"))] if "body_mass" in names else []
        # Each field with its default and the columns of its factors.
        self._fields = [
            (values := batch.expand(field), values[0].copy(), [k for name, k in scaled if name == field])
            for field in dict(scaled)
        ]
        inputs = mujoco.MjModel._setconst_inputs
        self._has_constants = any(name in inputs or name.startswith("opt.") for name in names)
        self.factors = np.ones((batch.nsim, len(names)))

    def draw(self, i: int, rng: np.random.Generator) -> None:
        """Draw the factors of simulation ``i``."""
        self.factors[i] = rng.uniform(self._low, self._high)

    def apply(self, rows: Array) -> None:
        """Write the fields of the simulations ``rows``, and the constants that MuJoCo derives from them."""
        for values, default, columns in self._fields:
            scaled = default
            for k in columns:
                scaled = scaled * self.factors[rows, k].reshape(-1, *[1] * default.ndim)
            values[rows] = scaled
        if self._has_constants:
            self._batch.set_const(rows)
