"""States of a MuJoCo task from one backend to the other: Gymnasium's simulators and a batch on `mujoco.batch`."""

from __future__ import annotations

import copy

import mujoco
import numpy as np

from rlexp.envs.mujoco.physics import DERIVED
from rlexp.envs.saving import State, StateUnavailableError


def from_gymnasium(state: State, model: mujoco.MjModel, compared: str) -> State:
    """The state of a `rlexp.envs.mujoco.batch.BatchedMujoco` from that of a `BatchedGymEnv`.

    Args:
        state: of Gymnasium's simulators.
        model: of the task; it tells the sizes of the arrays.
        compared: the task's field that the reward compares across steps.

    Raises:
        StateUnavailableError: a simulator is no MuJoCo task, or waits for its reset.
    """
    observation, reward, terminated, truncated, _, was_reset = state["arrays"]
    if was_reset.any():
        raise StateUnavailableError("an episode has ended and its simulator was reset already, which a batch is not")
    time_limits, physics, generators = zip(*map(_parts, state["simulators"]), strict=True)
    where = slice(1, 1 + model.nq) if compared == "qpos" else _place(model, compared)
    source = "integration" if compared == "qpos" else "derived"
    shape = np.shape(getattr(mujoco.MjData(model), compared))
    return {
        "model": physics[0]["model"],
        "rows": np.stack([p["integration"] for p in physics]),
        "compared": np.stack([p[source][where].reshape(shape) for p in physics]),
        "elapsed": np.array([values["_elapsed_steps"] for values in time_limits]),
        "rngs": [found["_np_random"]["state"] for found in generators],
        "seeds": state["seeds"],
        "factors": None,
        "arrays": [observation, reward, terminated, truncated],
    }


def to_gymnasium(state: State, template: State, model: mujoco.MjModel, compared: str) -> State:
    """The state of a `BatchedGymEnv` from that of a `rlexp.envs.mujoco.batch.BatchedMujoco`.

    Args:
        state: of the batch.
        template: the state of one such simulator of Gymnasium's, after some steps.
        model: of that simulator.
        compared: the task's field that the reward compares across steps.

    Raises:
        StateUnavailableError: the simulator is no MuJoCo task, or the batch's model varies.
    """
    if state.get("factors") is not None:
        raise StateUnavailableError("the state is that of simulations whose model varies")
    data = mujoco.MjData(model)
    simulators = []
    for i, row in enumerate(state["rows"]):
        simulator = copy.deepcopy(template)
        time_limit, physics, generators = _parts(simulator)
        mujoco.mj_setState(model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        derived = np.concatenate([getattr(data, name).ravel() for name in DERIVED])
        if compared != "qpos":
            derived[_place(model, compared)] = state["compared"][i].ravel()
        physics |= {"model": state["model"], "integration": row, "derived": derived}
        time_limit["_elapsed_steps"] = int(state["elapsed"][i])
        generators["_np_random"] = {"kind": "PCG64", "state": state["rngs"][i]}
        simulators.append(simulator)
    observation, reward, terminated, truncated = state["arrays"]
    arrays = [observation, reward, terminated, truncated, np.zeros_like(observation), np.zeros_like(terminated)]
    return {"seeds": state["seeds"], "arrays": arrays, "simulators": simulators}


def _parts(state: State) -> tuple[State, State, State]:
    """A simulator's time limit, physics and generators, which are what a batch has as well.

    Raises:
        StateUnavailableError: it is no MuJoCo task.
    """
    try:
        (time_limit,) = (layer["values"] for layer in state["layers"] if layer["class"] == "TimeLimit")
        task = state["layers"][-1]
        (physics,) = task["physics"].values()
        return time_limit, physics, task["generators"]
    except (KeyError, ValueError) as error:
        raise StateUnavailableError("the state is not that of a MuJoCo task of Gymnasium's") from error


def _place(model: mujoco.MjModel, field: str) -> slice:
    """Where a field is among the derived data of a simulator's state."""
    data, start = mujoco.MjData(model), 0
    for name in DERIVED:
        size = np.size(getattr(data, name))
        if name == field:
            return slice(start, start + size)
        start += size
    raise KeyError(field)
