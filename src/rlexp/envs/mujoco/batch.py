"""A batch of MuJoCo simulations as one torchrl environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from mujoco.batch import Batch

from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.attributes import own_attributes, set_attributes
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.making import log_mujocos_warnings
from rlexp.envs.mujoco.exchange import from_gymnasium
from rlexp.envs.mujoco.physics import model_digest
from rlexp.envs.mujoco.randomization import Randomization, Ranges
from rlexp.envs.mujoco.task import Array, MujocoTask, Rows
from rlexp.envs.saving import State, StateUnavailableError

_NO_STAGE = mujoco.mjtStage.mjSTAGE_NONE.value
_UNSTABLE = slice(mujoco.mjtWarning.mjWARN_BADQPOS.value, mujoco.mjtWarning.mjWARN_BADQACC.value + 1)


class BatchedMujoco(ArrayEnv):
    """``num_envs`` simulations of a task with batch size ``[num_envs]``, stepped by ``mujoco.batch``.

    Transitions equal those of the same task's Gymnasium environments bit for bit, whatever the number of threads. An
    observation that ends an episode is the terminal one, and truncation is distinct from termination.

    Args:
        task: what is simulated, observed and rewarded.
        name: names the environment in errors.
        num_envs: simulations.
        max_episode_steps: steps of the task, repeats counted, after which an episode is truncated; None never does.
        repeat: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        num_threads: threads that step the simulations.
        randomization: ranges of factors of the model's fields, drawn anew at each reset.
        resets_unstable: whether a simulation that is no longer stable goes on from the model's default pose, where
            MuJoCo puts it in mid-episode, as in Gymnasium; otherwise it is an error.

    Shapes:
        observation ``[num_envs, observation_size]`` and reward ``[num_envs, 1]`` in float64; action ``[num_envs, nu]``
        in float32; done, terminated, truncated ``[num_envs, 1]``.
    """

    def __init__(
        self,
        task: MujocoTask,
        name: str,
        *,
        num_envs: int,
        max_episode_steps: int | None,
        repeat: int = 1,
        num_threads: int = 1,
        randomization: Ranges | None = None,
        resets_unstable: bool = False,
    ) -> None:
        log_mujocos_warnings()
        size = task.observation_size
        low, high = task.model.actuator_ctrlrange.astype(np.float32).T
        super().__init__(
            name, num_envs, spaces.Box(-np.inf, np.inf, (size,), np.float64), spaces.Box(low, high, dtype=np.float32)
        )
        self.task, self._name, self._repeat, self._resets_unstable = task, name, repeat, resets_unstable
        self._limit = np.iinfo(np.int64).max if max_episode_steps is None else max_episode_steps
        self._batch = Batch(task.model, nsim=num_envs, nthread=num_threads, persistent=task.needs_contact_forces)
        try:
            task.bind(self._batch)
        except (AttributeError, ValueError) as error:
            raise SimulatorError(f"{type(task).__name__}.fields: {error}") from error
        self._random = Randomization(self._batch, randomization) if randomization else None
        self._contact = _ContactForces(self._batch, task) if task.needs_contact_forces else None
        self._compared: Array = self._batch.bind(task.compared)
        self._position = self._positions(self._compared)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulation ``i`` with ``seeds[i]`` at its next reset."""
        self._seeds[: len(seeds)] = seeds

    def step_arrays(self) -> None:
        """Step every simulation by ``arrays.action``; a final observation stays until the reset.

        Raises:
            SimulatorError: the task raised or gives what would be misread, or a simulation is no longer stable.
        """
        arrays = self.arrays
        arrays.terminated[:], arrays.truncated[:] = False, False
        if self._repeat == 1:
            self._advance(None)
            self._observe(slice(None))
            return
        running = np.arange(len(arrays.reward))
        total = np.zeros(len(arrays.reward))
        for _ in range(self._repeat):
            self._advance(running)
            total[running] += arrays.reward[running]
            self._observe(running)
            running = running[~(arrays.terminated[running] | arrays.truncated[running])]
            if not len(running):
                break
        arrays.reward[:] = total

    def _advance(self, rows: Array | None) -> None:
        """One step of the task in the simulations ``rows``; None steps all of them."""
        arrays, task = self.arrays, self.task
        task.ctrl[:] = arrays.action
        self._batch.step(rows, nstep=task.frame_skip)
        if not self._resets_unstable:
            self._check_stable()
        if self._contact is not None:
            self._contact.compute()
        before, self._position = self._position, self._positions(self._compared)
        everyone = self._elapsed.shape
        reward = self._asked("reward", everyone, arrays.action.copy(), before, self._position)
        terminated = self._asked("terminated", everyone)
        if terminated.dtype != np.bool_:
            raise SimulatorError(f"{type(task).__name__}.terminated gives {terminated.dtype}, and bool is needed.")
        if rows is None:
            self._elapsed += 1
            arrays.reward[:], arrays.terminated[:] = reward, terminated
            np.greater_equal(self._elapsed, self._limit, out=arrays.truncated)
        else:
            self._elapsed[rows] += 1
            arrays.reward[rows], arrays.terminated[rows] = reward[rows], terminated[rows]
            arrays.truncated[rows] = self._elapsed[rows] >= self._limit

    def _check_stable(self) -> None:
        unstable = self._batch.warning[:, _UNSTABLE, 1].any(-1)
        if unstable.any():
            raise SimulatorError(
                f"simulation {int(np.argmax(unstable))} of {self._name} is unstable, and MuJoCo has put it back to the "
                "default pose in mid-episode: give the model a smaller timestep or more damping, or let the task "
                "terminate before."
            )

    def _positions(self, compared: Array) -> Array:
        """A copy of the task's positions, which may be a view of memory that the next step overwrites."""
        found = np.array(self._called("position", compared))
        if found.shape[:1] != (len(compared),):
            name, shape = f"{type(self.task).__name__}.position", found.shape
            raise SimulatorError(f"{name} gives shape {shape}, and one row for each of {len(compared)} is needed.")
        return found

    def _observe(self, rows: Rows) -> None:
        """Put the observations of the simulations ``rows`` in ``arrays``."""
        there, count = self.arrays.observation, len(self._elapsed[rows])
        there[rows] = self._asked("observe", (count, *there.shape[1:]), rows)

    def _asked(self, method: str, shape: tuple[int, ...], *arguments: Any) -> Array:
        """What a method of the task gives; of another shape it would broadcast."""
        found = np.asarray(self._called(method, *arguments))
        if found.shape != shape:
            raise SimulatorError(
                f"{type(self.task).__name__}.{method} gives shape {found.shape}, not {shape}: one row per simulation, "
                "such as np.linalg.norm(self.qpos, axis=-1) has."
            )
        return found

    def _called(self, method: str, *arguments: Any) -> Any:
        """Call a method of the task, and name it if it fails."""
        try:
            return getattr(self.task, method)(*arguments)
        except Exception as error:
            name = f"{type(self.task).__name__}.{method}"
            raise SimulatorError(f"{name} failed: {type(error).__name__}: {error}") from error

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Reset the chosen simulations and put their first observations in ``arrays``.

        Raises:
            SimulatorError: the task raised, or gives what would be misread.
        """
        rows = np.asarray(chosen, np.int32)
        if not len(rows):
            return
        task = self.task
        self._batch.reset(rows, stage=_NO_STAGE)
        for i in chosen:
            if self._seeds[i] is not None or self._rngs[i] is None:
                self._rngs[i], _ = seeding.np_random(self._seeds[i])
                self._seeds[i] = None
            rng = self._rngs[i]
            assert rng is not None
            if self._random is not None:
                self._random.draw(i, rng)
            task.qpos[i], task.qvel[i] = self._begin(rng)
        self._apply_randomization(rows)
        self._batch.forward(rows)
        task.contact_forces[rows] = 0
        self._position[rows] = self._positions(self._compared[rows])
        self._elapsed[rows] = 0
        self._called("restart", rows)
        self._observe(rows)
        self.arrays.terminated[rows] = self.arrays.truncated[rows] = False

    def _begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Position and velocity of a new episode; of another shape they would broadcast."""
        found, name = self._called("begin", rng), f"{type(self.task).__name__}.begin"
        wanted = [self.task.init_qpos.shape, self.task.init_qvel.shape]
        shapes = [np.shape(part) for part in found] if isinstance(found, tuple | list) else np.shape(found)
        if shapes != wanted:
            needed = f"positions of shape {wanted[0]} and velocities of shape {wanted[1]}"
            raise SimulatorError(f"{name} gives shapes {shapes}, and {needed} are needed.")
        position, velocity = found
        if not (np.isfinite(position).all() and np.isfinite(velocity).all()):
            raise SimulatorError(f"{name} gives NaN or infinity.")
        return position, velocity

    def _apply_randomization(self, rows: Array) -> None:
        if self._random is not None:
            self._random.apply(rows)
            if self._contact is not None:
                self._contact.take_models(rows)

    def simulator_state(self) -> State:
        """Everything that decides what the simulations do next.

        Raises:
            StateUnavailableError: an attribute of the task cannot be saved.
        """
        arrays, task = self.arrays, self.task
        return {
            "model": model_digest(task.model),
            "task": own_attributes(task, {"model", "contact_forces", *task.bound_fields}),
            "rows": np.array(self._batch.state),
            "compared": np.array(self._compared),
            "elapsed": self._elapsed.copy(),
            "rngs": [None if rng is None else rng.bit_generator.state for rng in self._rngs],
            "seeds": list(self._seeds),
            "factors": None if self._random is None else self._random.factors.copy(),
            "arrays": [a.copy() for a in (arrays.observation, arrays.reward, arrays.terminated, arrays.truncated)],
        }

    def load_simulator_state(self, state: State) -> None:
        """Continue exactly where `simulator_state` was called.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """
        if "simulators" in state:
            state = from_gymnasium(state, self.task.model, self.task.compared)
        if state["model"] != model_digest(self.task.model):
            raise StateUnavailableError(f"{self._name}: the MuJoCo model differs")
        if (self._random is None) != (state.get("factors") is None):
            raise StateUnavailableError(f"{self._name}: only one of state and environment has env.randomization")
        if len(state["rows"]) != self._batch.nsim:
            raise StateUnavailableError(f"{self._name}: the state is that of {len(state['rows'])} simulators")
        if self._random is not None:
            self._random.factors[:] = state["factors"]
            self._apply_randomization(np.arange(self._batch.nsim, dtype=np.int32))
        self._batch.state[:] = state["rows"]
        self._position = self._positions(state["compared"])
        self._elapsed[:] = state["elapsed"]
        self._rngs = [None if saved is None else _generator(saved) for saved in state["rngs"]]
        self._seeds = list(state["seeds"])
        set_attributes(self.task, state.get("task", {}))
        arrays = self.arrays
        targets = (arrays.observation, arrays.reward, arrays.terminated, arrays.truncated)
        for array, saved in zip(targets, state["arrays"], strict=True):
            array[...] = saved


def _generator(state: State) -> np.random.Generator:
    """The generator that Gymnasium's seeding makes, in a saved state."""
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    return generator


class _ContactForces:
    """Computes ``cfrc_ext`` after a step, which ``mujoco.batch`` does not: ``mj_rnePostConstraint`` on each simulation.

    One thread does it for all: a simulation takes some ten microseconds, most of them the copy of its data, during
    which MuJoCo holds Python's lock, so that more threads took longer.

    Args:
        batch: persistent, so that it holds each simulation's whole data.
        task: whose ``contact_forces`` are written.
    """

    def __init__(self, batch: Batch, task: MujocoTask) -> None:
        self._batch, self._task = batch, task
        self._data = mujoco.MjData(task.model)
        self._models = [task.model] * batch.nsim

    def take_models(self, rows: Array) -> None:
        """Simulations have models of their own, which have changed."""
        for i in rows:
            own = None if self._models[i] is self._task.model else self._models[i]
            self._models[i] = self._batch.get_model(i, own)

    def compute(self) -> None:
        """Write the contact forces of every simulation."""
        data, forces, found = self._data, self._task.contact_forces, self._data.cfrc_ext
        for i, model in enumerate(self._models):
            self._batch.get_data(i, data)
            mujoco.mj_rnePostConstraint(model, data)
            forces[i] = found
