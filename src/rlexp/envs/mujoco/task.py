"""What a MuJoCo task is: which model, what is observed and rewarded, when an episode ends and how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

if TYPE_CHECKING:
    from mujoco.batch import Batch

Array: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = "slice | Sequence[int] | Array"


class MujocoTask:
    """Base of the tasks. All methods but `begin` work on rows of arrays, one row per simulation.

    A subclass declares the data that it reads as annotated names in ``fields``; they become attributes, arrays
    ``[num_envs, *field]`` that show MuJoCo's data (``mujoco.MjData``) after the newest step.

    Args:
        xml_file: the model: a path, or the name of one of Gymnasium's.
        frame_skip: steps of the simulation per step of the task.

    Attributes:
        model: the compiled model.
        dt: seconds per step of the task.
        init_qpos, init_qvel: the model's default positions ``[nq]`` and velocities ``[nv]``.
    """

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    """Names in ``MjData`` that the task reads."""
    compared: ClassVar[str] = "qpos"
    """The field that `position` is computed from, which the reward compares before and after a step."""
    needs_contact_forces: bool = False
    """Whether the task reads ``contact_forces``, which take ``mj_rnePostConstraint`` after each step."""

    qpos: Array
    qvel: Array
    ctrl: Array
    contact_forces: Array
    """``cfrc_ext`` ``[num_envs, nbody, 6]``; zero after a reset."""

    def __init__(self, xml_file: str, frame_skip: int) -> None:
        self.model = mujoco.MjModel.from_xml_path(expand_model_path(xml_file))
        self.frame_skip = frame_skip
        self.dt = self.model.opt.timestep * frame_skip
        data = mujoco.MjData(self.model)
        self.init_qpos, self.init_qvel = data.qpos.copy(), data.qvel.copy()

    def bind(self, batch: Batch) -> None:
        """Make the declared fields show the batch's data."""
        for name in self.bound_fields:
            setattr(self, name, batch.bind(name))
        self.contact_forces = np.zeros((batch.nsim, self.model.nbody, 6))

    @property
    def bound_fields(self) -> set[str]:
        """Names of the fields that `bind` makes attributes."""
        return {"qpos", "qvel", "ctrl", self.compared, *self.fields}

    @property
    def observation_size(self) -> int:
        """Numbers of one observation."""
        raise NotImplementedError

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Positions ``[nq]`` and velocities ``[nv]`` that one simulation's episode begins with."""
        raise NotImplementedError

    def restart(self, rows: Rows) -> None:
        """Reset what attributes of the task's own hold of the simulations ``rows``, whose episodes begin."""

    def observe(self, rows: Rows) -> Array:
        """Observations ``[rows, observation_size]``."""
        raise NotImplementedError

    def position(self, compared: Array) -> Array:
        """What the reward compares across a step ``[n]``, from the field ``compared`` ``[n, *field]``."""
        return np.zeros(len(compared))

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        """Rewards ``[num_envs]`` of the newest step.

        Args:
            action: ``[num_envs, nu]``, as the policy gave them, within the bounds.
            before: `position` before the step ``[num_envs]``.
            after: `position` after it ``[num_envs]``.
        """
        raise NotImplementedError

    def terminated(self) -> Array:
        """Whether each simulation's episode has ended, other than by its time limit ``[num_envs]``."""
        return np.zeros(len(self.qpos), np.bool_)


def uniform(rng: np.random.Generator, scale: float, size: int) -> Array:
    """Uniform noise between -scale and scale ``[size]``, as Gymnasium draws it."""
    return rng.uniform(low=-scale, high=scale, size=size)


def squares(values: Array) -> Array:
    """Sums of squares over all but the first dimension, in the order in which Gymnasium adds them."""
    squared: Array = np.square(values)
    total: Array = squared.reshape(len(values), -1).sum(-1)
    return total
