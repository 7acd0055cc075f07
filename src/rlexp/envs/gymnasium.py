"""Gymnasium simulators, stepped together as one torchrl environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from rlexp.config import ConfigError, Problem
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.simulators import STEP, SharedArrays, Simulators, Worker, shares, split_seeds
from rlexp.envs.snapshot import State, StateUnavailableError


class BatchedGymEnv(ArrayEnv):
    """``num_envs`` copies of a Gymnasium environment with batch size ``[num_envs]``.

    Transitions equal plain Gymnasium's to the bit: the observation that ends an episode is the terminal one, the reset
    that follows (of the finished simulators alone) shows the next one's first, and truncation is told from termination.

    Args:
        env_id: Gymnasium's id of an environment with Box or Discrete actions.
        num_envs: number of copies.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        num_workers: processes that step them, this one included; how many changes no transition.
        kwargs: passed to `rlexp.envs.making.make`.

    Shapes:
        observation ``[num_envs, *observation]`` and reward ``[num_envs, 1]`` in float64 or the simulator's own type;
        action ``[num_envs, *action]``, or ``[num_envs]`` in int64 for a choice among n; done, terminated, truncated
        ``[num_envs, 1]``.

    Raises:
        ConfigError: the environment cannot be made, or a space is of another kind.
        SimulatorError: from ``step`` and ``reset``, a simulator in another process failed, or that process did.
    """

    def __init__(self, env_id: str, *, num_envs: int, frame_skip: int = 1, num_workers: int = 1, **kwargs: Any) -> None:
        self._shares = shares(num_envs, num_workers)
        mine, *others = self._shares
        try:
            simulators = Simulators(env_id, mine.stop, frame_skip, kwargs)
        except Exception as error:
            raise ConfigError([Problem("env.id", f"cannot be made: {error}", env_id)]) from error
        super().__init__(env_id, num_envs, simulators.envs[0].observation_space, simulators.envs[0].action_space)
        self.workers: list[Worker] = []
        if others:
            shared = SharedArrays.like(self.arrays)
            self.arrays = shared.open()
            self.workers = [Worker(env_id, frame_skip, kwargs, shared, s.start, s.stop) for s in others]
            os.close(shared.fd)
        self._simulators = simulators
        self._simulators.arrays = self.arrays.rows(mine)
        self._seeds: list[int | None] = [None] * num_envs

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at its next reset."""
        self._seeds[: len(seeds)] = seeds

    def wrap(self, wrapper: Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]) -> None:
        """Put a Gymnasium wrapper around the first simulator: to watch it, say."""
        self._simulators.envs[0] = wrapper(self._simulators.envs[0])

    def seconds_per_step(self) -> float:
        """What a step of this process's simulators takes: measured for a moment, from a reset on, by random actions."""
        envs = self._simulators.envs
        for i, env in enumerate(envs):
            env.action_space.seed(i)
        actions = [np.stack([env.action_space.sample() for env in envs]) for _ in range(100)]
        self._simulators.reset(dict.fromkeys(range(len(envs)), 0))
        bursts = []
        for _ in range(5):
            begun, steps = time.perf_counter(), 0
            while (spent := time.perf_counter() - begun) < 0.01:
                self._simulators.arrays.action[:] = actions[steps % len(actions)]
                self._simulators.step()
                steps += 1
            bursts.append(spent / steps)
        return min(bursts)  # what else the machine does only ever adds

    def step_arrays(self) -> None:
        """Step every simulator by ``arrays.action``; a final observation stays until the reset."""
        for worker in self.workers:
            worker.send_bytes(STEP)
        self._simulators.step()
        for worker in self.workers:
            worker.receive(self.timeout)

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Reset the chosen simulators and put their first observations in ``arrays``."""
        arrays = self.arrays
        ready = [i for i in chosen if arrays.fresh[i] and self._seeds[i] is None]
        arrays.observation[ready] = arrays.first[ready]
        arrays.terminated[ready] = arrays.truncated[ready] = arrays.fresh[ready] = False
        if len(ready) == len(chosen):
            return
        mine, *others = split_seeds({i: self._seeds[i] for i in chosen if i not in ready}, self._shares)
        asked = [(worker, part) for worker, part in zip(self.workers, others, strict=True) if part]
        for worker, part in asked:
            worker.send("reset", part)
        self._simulators.reset(mine)
        for worker, _ in asked:
            worker.receive(self.timeout)
        for i in chosen:
            self._seeds[i] = None

    def simulator_state(self) -> dict[str, Any]:
        """Everything that decides what the simulators do next: their own states, and seeds not yet used.

        Raises:
            StateUnavailableError: a simulator cannot give its state.
        """
        found = [self._simulators.states(), *self._ask("states", [()] * len(self.workers))]
        return {
            "seeds": list(self._seeds),
            "arrays": [array.copy() for array in self._results()],
            "simulators": [state for part in map(_available, found) for state in part],
        }

    def load_simulator_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `simulator_state` was called.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """
        mine, *others = [(state["simulators"][share],) for share in self._shares]
        for mismatch in (self._simulators.mismatch(*mine), *self._ask("mismatch", others)):
            if mismatch is not None:
                raise StateUnavailableError(mismatch)
        self._simulators.load_states(*mine)
        self._ask("load_states", others)
        self._seeds = list(state["seeds"])
        for array, saved in zip(self._results(), state["arrays"], strict=True):
            array[...] = saved

    def _results(self) -> list[npt.NDArray[Any]]:
        """The arrays that simulators write, and no one else."""
        arrays = self.arrays
        return [arrays.observation, arrays.reward, arrays.terminated, arrays.truncated, arrays.first, arrays.fresh]

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What a method of each worker's `Simulators` returns."""
        for worker, own in zip(self.workers, arguments, strict=True):
            worker.send(method, *own)
        return [worker.receive(self.timeout) for worker in self.workers]

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every simulator and end the processes."""
        self._simulators.close()
        for worker in self.workers:
            worker.close()
        super().close(raise_if_closed=raise_if_closed)


def _available(states: list[State] | str) -> list[State]:
    if isinstance(states, str):
        raise StateUnavailableError(states)
    return states
