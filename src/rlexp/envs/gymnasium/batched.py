"""Gymnasium simulators, stepped together as one torchrl environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields
from typing import Any, TypeVar

import gymnasium
import numpy as np
import numpy.typing as npt

from rlexp.config import ConfigError
from rlexp.envs.actions import random_choices
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.entries import joined, split
from rlexp.envs.gymnasium.making import MaskSource, integer_images, own_action_space
from rlexp.envs.gymnasium.simulators import (
    SharedArrays,
    SimulatorError,
    Simulators,
    shares,
    split_seeds,
    worker_simulators,
)
from rlexp.envs.gymnasium.snapshot import get_state, set_state
from rlexp.envs.saving import StateUnavailableError
from rlexp.workers import Worker, Workers

W = TypeVar("W", bound=gymnasium.Env[Any, Any])


class BatchedGymEnv(ArrayEnv):
    """``num_envs`` copies of a Gymnasium environment with batch size ``[num_envs]``.

    Transitions equal plain Gymnasium's bit for bit: the observation that ends an episode is the terminal one, the reset
    that follows (of the finished simulators alone) shows the next one's first, and truncation is no termination.

    Args:
        env_id: Gymnasium's id.
        num_envs: number of copies.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        num_workers: processes that step them, this one included; how many changes no transition.
        kwargs: passed to ``gymnasium.make``.
        pixels: width and number of the gray frames that are observed in place of what the simulator gives.
        action_mask, flatten: as in `rlexp.envs.gymnasium.making.make`.

    Shapes:
        observation ``[num_envs, *observation]``, typed as `making.make` gives it; reward ``[num_envs, 1]`` in float64;
        action ``[num_envs, actions]``, or in int64 ``[num_envs]`` for one choice and ``[num_envs, choices]`` for
        several; done, terminated, truncated ``[num_envs, 1]``; with masks, action_mask ``[num_envs, values]``.

    Raises:
        ConfigError: the environment cannot be made, or a space is of another kind.
        SimulatorError: from ``step`` and ``reset``, a simulator in another process failed, or that process did.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int,
        frame_skip: int = 1,
        num_workers: int = 1,
        kwargs: Mapping[str, Any] | None = None,
        pixels: tuple[int, int] | None = None,
        action_mask: MaskSource = "auto",
        flatten: bool = False,
    ) -> None:
        kwargs = dict(kwargs or {})
        self._shares = shares(num_envs, num_workers)
        mine, *others = self._shares
        simulators = Simulators(env_id, mine.stop, frame_skip, kwargs, pixels, action_mask, flatten)
        try:
            one = simulators.envs[0]
            super().__init__(
                *(env_id, num_envs, one.observation_space, one.action_space),
                own_action_space=own_action_space(one),
                masked=simulators.masked,
                lives=simulators.lives,
            )
        except ConfigError:
            simulators.close()
            raise
        self.integer_images = integer_images(one)
        self._env_id, self._simulators = env_id, simulators
        self._workers: Workers | None = None
        if others:
            shared = SharedArrays.like(self.arrays)
            self.arrays = shared.open()
            self._workers = Workers(
                worker_simulators,
                {
                    f"simulators {share.start} to {share.stop - 1} of {env_id}": (
                        *(env_id, frame_skip, kwargs, pixels, action_mask, flatten, shared, share),
                    )
                    for share in others
                },
                fds=[shared.fd],
                passed_on=(ConfigError, StateUnavailableError),
                error=SimulatorError,
            )
            os.close(shared.fd)
        self._simulators.arrays = self.arrays.rows(mine)
        self._seeds: list[int | None] = [None] * num_envs

    @property
    def workers(self) -> list[Worker]:
        """The processes beside this one that step simulators."""
        return [] if self._workers is None else list(self._workers)

    @property
    def at(self) -> tuple[int, str] | None:
        """A count of calls and the simulator that this process waits for now; None where it waits for none."""
        return self._simulators.at

    def check_every_step(self) -> None:
        """Check all raw values of the simulators, and not only those of the first steps; call it before the first."""
        self._simulators.check_every_step()
        self._ask_each("check_every_step", [()] * (len(self._shares) - 1))

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at its next reset."""
        self._seeds[: len(seeds)] = seeds

    def wrap(self, wrapper: Callable[[gymnasium.Env[Any, Any]], W]) -> W:
        """Put a Gymnasium wrapper around the first simulator, to watch it, say, and return it."""
        wrapped = self._simulators.envs[0] = wrapper(self._simulators.envs[0])
        return wrapped

    def seconds_per_step(self) -> float:
        """What a step of this process's simulators takes: measured for a moment, from a reset on, by random actions."""
        envs = self._simulators.envs
        for i, env in enumerate(envs):
            env.action_space.seed(i)
        actions = [np.stack([env.action_space.sample() for env in envs]) for _ in range(100)]
        arrays, rng = self._simulators.arrays, np.random.default_rng(0)
        self._simulators.reset(dict.fromkeys(range(len(envs)), 0))
        kept: list[dict[str, Any]] = []
        with suppress(StateUnavailableError):  # class variables, say, which the simulators that train would have too
            kept = deepcopy([get_state(env) for env in envs])
        bursts = []
        for _ in range(5):
            begun, steps = time.perf_counter(), 0
            while (spent := time.perf_counter() - begun) < 0.01:
                arrays.action[:] = actions[steps % len(actions)]
                if self._simulators.masked:
                    mask = np.where(arrays.was_reset[:, None], arrays.reset_action_mask, arrays.action_mask)
                    arrays.action[:] = random_choices(mask, self.choices, rng).reshape(arrays.action.shape)
                self._simulators.step()
                steps += 1
            bursts.append(spent / steps)
        for env, state in zip(envs, kept, strict=False):
            set_state(env, state)
        return min(bursts)  # what else the machine does only ever adds

    def step_arrays(self) -> None:
        """Step every simulator by ``arrays.action``; a final observation stays until the reset."""
        if self._workers is not None:
            self._workers.ask("step")
        self._simulators.step()
        if self._workers is not None:
            self._workers.answers(self.timeout)

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Reset the chosen simulators and put their first observations in ``arrays``."""
        arrays = self.arrays
        ready = [i for i in chosen if arrays.was_reset[i] and self._seeds[i] is None]
        arrays.observation[ready] = arrays.reset_observation[ready]
        arrays.action_mask[ready] = arrays.reset_action_mask[ready]
        for ended in (arrays.terminated, arrays.truncated, arrays.was_reset, arrays.end_of_life):
            ended[ready] = False
        if len(ready) == len(chosen):
            return
        mine, *others = split_seeds({i: self._seeds[i] for i in chosen if i not in ready}, self._shares)
        if self._workers is not None:
            self._workers.ask_each("reset", {i: (part,) for i, part in enumerate(others) if part})
        self._simulators.reset(mine)
        if self._workers is not None:
            self._workers.answers(self.timeout)
        for i in chosen:
            self._seeds[i] = None

    def simulator_state(self) -> dict[str, Any]:
        """Everything that decides what the simulators do next: their own states, and seeds not yet used.

        Raises:
            StateUnavailableError: a simulator cannot give its state.
        """
        states = [self._simulators.states(), *self._ask_each("states", [()] * (len(self._shares) - 1))]
        return {
            "seeds": list(self._seeds),
            "arrays": [array.copy() if array.dtype.names is None else split(array) for array in self._results()],
            "simulators": [state for part in states for state in part],
        }

    def load_simulator_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `simulator_state` was called.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """
        if "rows" in state:
            state = self._of_batch(state)
        if len(state["simulators"]) != self.batch_size[0]:
            raise StateUnavailableError(f"the state is that of {len(state['simulators'])} simulators")
        mine, *others = [(state["simulators"][share],) for share in self._shares]
        self._simulators.check_states(*mine)
        self._ask_each("check_states", others)
        self._simulators.load_states(*mine)
        self._ask_each("load_states", others)
        self._seeds = list(state["seeds"])
        for array, saved in zip(self._results(), state["arrays"], strict=True):
            array[...] = joined(saved, 1) if isinstance(saved, dict) else saved

    def _of_batch(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of simulations on ``mujoco.batch`` as one of these simulators."""
        from rlexp.envs.mujoco.exchange import to_gymnasium
        from rlexp.envs.mujoco.tasks import TASKS

        if self._env_id not in TASKS:
            raise StateUnavailableError(f"the state is that of a MuJoCo task, not of {self._env_id}")
        simulator = self._simulators.envs[0]
        simulator.reset(seed=0)
        for _ in range(2):  # Gymnasium's checker compares the first two
            simulator.step(np.zeros(self.arrays.action.shape[1:], np.float32))
        model = simulator.unwrapped.model
        return to_gymnasium(state, get_state(simulator), model, TASKS[self._env_id].compared)

    def _results(self) -> list[npt.NDArray[Any]]:
        """The arrays that simulators write, and no one else."""
        arrays = [getattr(self.arrays, field.name) for field in fields(self.arrays) if field.name != "action"]
        return [array for array in arrays if array.size]  # no masks and lives where there are none

    def _ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What a method of each worker's `Simulators` returns."""
        if self._workers is None:
            return []
        self._workers.ask_each(method, dict(enumerate(arguments)))
        return self._workers.answers(self.timeout)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every simulator and end the processes."""
        try:
            self._simulators.close()
        finally:
            if self._workers is not None:
                self._workers.close()
        super().close(raise_if_closed=raise_if_closed)
