"""Gymnasium simulators stepped one after another, and the processes that share them out. Imports no torch.

A worker process imports only this module and the simulators, so it starts in about a second.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlexp.envs.making import make
from rlexp.envs.snapshot import State, StateUnavailableError, check_state, get_state, set_state


class SimulatorError(Exception):
    """A simulator failed, or the process that stepped it died; the message says which and why."""


@dataclass
class Arrays:
    """Where simulators write, row ``i`` for simulator ``i``.

    Attributes:
        observation: ``[num_envs, *observation]``, the simulator's own type.
        reward: ``[num_envs]`` float64.
        terminated: ``[num_envs]`` bool.
        truncated: ``[num_envs]`` bool.
        first: like ``observation``, where a simulator is fresh: what its next episode begins with.
        fresh: ``[num_envs]`` bool, the simulator has ended an episode, and was reset at once.
        action: ``[num_envs, *action]``, what the next step does; ``[num_envs]`` int64 where it is a choice.
    """

    observation: npt.NDArray[Any]
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    first: npt.NDArray[Any]
    fresh: npt.NDArray[np.bool_]
    action: npt.NDArray[Any]

    def rows(self, chosen: slice) -> Arrays:
        """Views of some simulators' rows."""
        return Arrays(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Simulators:
    """Copies of a Gymnasium environment, stepped in this process.

    Args:
        env_id: Gymnasium's id.
        num_envs: number of copies.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        kwargs: passed to `rlexp.envs.making.make`.
    """

    def __init__(self, env_id: str, num_envs: int, frame_skip: int, kwargs: Mapping[str, Any]) -> None:
        self.envs = [make(env_id, **kwargs) for _ in range(num_envs)]
        self.arrays: Arrays
        self._repeat = frame_skip

    def step(self) -> None:
        """Step every simulator by its row of ``action``, and reset at once those that end an episode.

        A process's finished simulators are reset while the others still step theirs, and nobody need ask for it.
        """
        arrays = self.arrays
        for i, env in enumerate(self.envs):
            total = 0.0
            for _ in range(self._repeat):
                observation, reward, terminated, truncated, _ = env.step(arrays.action[i])
                total += float(reward)
                if terminated or truncated:
                    break
            arrays.observation[i], arrays.reward[i] = observation, total
            arrays.terminated[i], arrays.truncated[i] = terminated, truncated
            arrays.fresh[i] = ended = terminated or truncated
            if ended:
                arrays.first[i], _ = env.reset()

    def reset(self, seeds: Mapping[int, int | None]) -> None:
        """Reset simulators, each with its seed; None goes on with the random stream it has."""
        arrays = self.arrays
        for i, seed in seeds.items():
            arrays.observation[i], _ = self.envs[i].reset(seed=seed)
            arrays.terminated[i] = arrays.truncated[i] = arrays.fresh[i] = False

    def states(self) -> list[State] | str:
        """The state of each simulator, or why there is none to be had."""
        try:
            return [get_state(env) for env in self.envs]
        except StateUnavailableError as error:
            return str(error)

    def mismatch(self, states: Sequence[State]) -> str | None:
        """Why these states are not of these simulators, or None."""
        try:
            for env, state in zip(self.envs, states, strict=True):
                check_state(env, state)
        except StateUnavailableError as error:
            return str(error)
        return None

    def load_states(self, states: Sequence[State]) -> None:
        """Put states that fit into the simulators."""
        for env, state in zip(self.envs, states, strict=True):
            set_state(env, state)

    def close(self) -> None:
        """Close every simulator."""
        for env in self.envs:
            env.close()


class SharedArrays:
    """An `Arrays` in memory that processes share; goes with the last process that holds it."""

    def __init__(self, like: Arrays) -> None:
        self._layout = [(getattr(like, f.name).shape, getattr(like, f.name).dtype) for f in fields(like)]
        self._blocks = [
            multiprocessing.get_context("spawn").RawArray("b", max(1, getattr(like, f.name).nbytes))
            for f in fields(like)
        ]

    def open(self) -> Arrays:
        """The arrays, in whichever process asks."""
        return Arrays(
            *(
                np.frombuffer(block, dtype, count=int(np.prod(shape))).reshape(shape)
                for block, (shape, dtype) in zip(self._blocks, self._layout, strict=True)
            )
        )


class Watch:
    """Waits for a message without falling asleep at once: to wake a process can take longer than a simulator's step.

    Args:
        pipe: where the message comes.
    """

    def __init__(self, pipe: Connection) -> None:
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def wait_awake(self) -> None:
        """Return when there is a message, or when it takes so long that sleep costs little."""
        give_up = time.perf_counter() + _AWAKE
        while not self._poll.poll(0) and time.perf_counter() < give_up:
            os.sched_yield()


class Worker:
    """A process that steps its share of the simulators, in the same arrays as everybody else's.

    Args:
        env_id, frame_skip, kwargs: as for `Simulators`.
        shared: every simulator's arrays.
        first, stop: the simulators of this worker.
    """

    def __init__(
        self, env_id: str, frame_skip: int, kwargs: Mapping[str, Any], shared: SharedArrays, first: int, stop: int
    ) -> None:
        self._name = f"simulators {first} to {stop - 1} of {env_id}"
        # Spawned, not forked: torch's threads do not survive a fork, and a forked sibling would hold this pipe open.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._watch = Watch(self._pipe)
        arguments = (theirs, env_id, frame_skip, dict(kwargs), shared, slice(first, stop))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, method: str, *arguments: object) -> None:
        """Ask for a call of a method of its `Simulators`.

        Raises:
            SimulatorError: the process died.
        """
        self.send_bytes(pickle.dumps((method, arguments)))

    def send_bytes(self, message: bytes) -> None:
        """Ask for a call that was pickled before.

        Raises:
            SimulatorError: the process died.
        """
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            raise self._died() from error

    def receive(self, timeout: float | None = None) -> Any:
        """What the call returned.

        Args:
            timeout: seconds to wait; a process that takes longer is ended. None waits for ever.

        Raises:
            SimulatorError: it raised, or the process died or hangs.
        """
        self._watch.wait_awake()
        try:
            if timeout is not None and not self._pipe.poll(timeout):
                self._process.kill()
                raise SimulatorError(f"the worker process {self.pid} of {self._name} did not answer in {timeout:g} s.")
            done, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if not done:
            raise SimulatorError(f"{self._name} failed in worker process {self.pid}:\n{value}")
        return value

    def close(self) -> None:
        """End the process; it closes its simulators first."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _died(self) -> SimulatorError:
        self._process.join(timeout=5)
        code = self._process.exitcode
        return SimulatorError(f"the worker process {self.pid} of {self._name} died with exit code {code}.")


STEP = pickle.dumps(("step", ()))
_AWAKE = 1e-3  # seconds


def shares(num_envs: int, num_workers: int) -> list[slice]:
    """The simulators of each process, as even as can be."""
    bounds = [num_envs * k // num_workers for k in range(num_workers + 1)]
    return [slice(first, stop) for first, stop in pairwise(bounds)]


def _serve(
    pipe: Connection, env_id: str, frame_skip: int, kwargs: dict[str, Any], shared: SharedArrays, rows: slice
) -> None:
    """Answer calls until the other end of the pipe is gone, as it is too when the main process was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    simulators: Simulators | None = None
    try:
        simulators = Simulators(env_id, rows.stop - rows.start, frame_skip, kwargs)
        simulators.arrays = shared.open().rows(rows)
        watch = Watch(pipe)
        while True:
            watch.wait_awake()
            method, arguments = pipe.recv()
            pipe.send((True, getattr(simulators, method)(*arguments)))
    except (EOFError, ConnectionError):
        pass
    except Exception:
        pipe.send((False, traceback.format_exc()))
    finally:
        if simulators is not None:
            simulators.close()


def allocate(num_envs: int, observation: spaces.Box, action: spaces.Box | spaces.Discrete) -> Arrays:
    """Arrays for ``num_envs`` simulators with these spaces."""
    return Arrays(
        np.zeros((num_envs, *observation.shape), dtype=observation.dtype),
        np.zeros(num_envs),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros((num_envs, *observation.shape), dtype=observation.dtype),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros((num_envs, *action.shape), dtype=np.int64 if isinstance(action, spaces.Discrete) else action.dtype),
    )


def split_seeds(seeds: Mapping[int, int | None], parts: Sequence[slice]) -> list[dict[int, int | None]]:
    """``seeds`` by process, counted from each one's first simulator."""
    return [{i - p.start: seed for i, seed in seeds.items() if p.start <= i < p.stop} for p in parts]
