"""The physics of one MuJoCo simulation: all that decides its next step, and what the last one left to read."""

from __future__ import annotations

import hashlib

import mujoco
import numpy as np
import numpy.typing as npt

from rlexp.envs.saving import State

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


# What a step leaves for others to read, sized by the model alone. The arrays of active constraints and islands come
# and go with every step, which computes them before it uses them.
DERIVED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat", "site_xpos"),
    *("site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "subtree_com", "subtree_linvel"),
    *("subtree_angmom", "cinert", "cdof", "cdof_dot", "cvel", "cacc", "cfrc_int", "cfrc_ext"),
    *("ten_length", "ten_velocity"),
    *("actuator_length", "actuator_velocity", "actuator_force", "qacc", "qacc_smooth", "qfrc_actuator", "qfrc_bias"),
    *("qfrc_passive", "qfrc_spring", "qfrc_damper", "qfrc_gravcomp", "qfrc_fluid", "qfrc_smooth", "qfrc_constraint"),
    *("qfrc_inverse", "sensordata", "energy"),
)


def get_physics(data: mujoco.MjData) -> State:
    """What `set_physics` puts into another's data of the same model."""
    integration = np.empty(mujoco.mj_stateSize(data.model, _INTEGRATION))
    mujoco.mj_getState(data.model, data, integration, _INTEGRATION)
    derived = np.concatenate([array.ravel() for array in _derived(data)])
    return {"model": model_digest(data.model), "integration": integration, "derived": derived}


def set_physics(data: mujoco.MjData, state: State) -> None:
    """Go on exactly where `get_physics` was called."""
    model = data.model
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    mujoco.mj_forward(model, data)
    # mj_forward overwrites the solver's warm start, and computes from this instant what the simulator last computed
    # from the one before: Ant and Humanoid read such stale arrays at the start of a step.
    mujoco.mj_setState(model, data, state["integration"], _INTEGRATION)
    start = 0
    for array in _derived(data):
        array[...] = state["derived"][start : start + array.size].reshape(array.shape)
        start += array.size


def _derived(data: mujoco.MjData) -> list[npt.NDArray[np.float64]]:
    return [getattr(data, name) for name in DERIVED]


def model_digest(model: mujoco.MjModel) -> str:
    """SHA-256 of a model: of everything that decides how it moves."""
    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()
