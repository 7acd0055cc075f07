"""Gymnasium simulators stepped one after another, and the processes that share them out. Imports no torch.

A worker process imports only this module and the simulators, so it starts in about a second. What the main program is
does not matter to it: a script needs no ``if __name__ == "__main__"``, and a notebook does as well.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
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


@dataclass(frozen=True)
class SharedArrays:
    """An `Arrays` in memory that processes share; goes with the last process that holds it.

    Attributes:
        fd: file descriptor of the memory.
        layout: shape and type of each array.
    """

    fd: int
    layout: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]

    @classmethod
    def like(cls, arrays: Arrays) -> SharedArrays:
        """New ones, full of zeros."""
        layout = [(getattr(arrays, f.name).shape, getattr(arrays, f.name).dtype) for f in fields(arrays)]
        fd = os.memfd_create("rlexp")
        os.truncate(fd, sum(_aligned(*array) for array in layout))
        return cls(fd, layout)

    def open(self) -> Arrays:
        """The arrays, in whichever process has the descriptor; they stay when it is closed."""
        memory, offset, arrays = mmap.mmap(self.fd, 0), 0, []
        for shape, dtype in self.layout:
            arrays.append(np.ndarray(shape, dtype, memory, offset))
            offset += _aligned(shape, dtype)
        return Arrays(*arrays)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array, so that the next one begins where a cache line does."""
    return max(1, -(-math.prod(shape) * dtype.itemsize // 64)) * 64


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
        self._pipe, theirs = Pipe()
        self._watch = Watch(self._pipe)
        program = (
            f"import sys; sys.path[:] = {[str(path) for path in sys.path]}\n"
            f"from rlexp.envs.simulators import serve; serve({theirs.fileno()})"
        )
        # Not forked: torch's threads do not survive it. Not by multiprocessing: it runs the main program once more.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), shared.fd)
        )
        theirs.close()
        self.pid = self._process.pid
        self.send_bytes(pickle.dumps((env_id, frame_skip, dict(kwargs), shared, slice(first, stop))))

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
        self._wait()

    def _died(self) -> SimulatorError:
        return SimulatorError(f"the worker process {self.pid} of {self._name} died with exit code {self._wait()}.")

    def _wait(self) -> int:
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


STEP = pickle.dumps(("step", ()))
# Seconds: to wait awake; that a step's messages to a worker and back take; until a worker is there.
_AWAKE, _MESSAGES, _START = 1e-3, 5e-5, 1.0


def best_workers(seconds: float, num_envs: int, cores: int, steps: int) -> int:
    """How many processes, this one included, make so many steps of all simulators soonest.

    Args:
        seconds: that a step of one simulator takes.
        num_envs: simulators.
        cores: processes at most.
        steps: of each simulator.
    """

    def cost(workers: int) -> float:
        return -(-num_envs // workers) * seconds + (workers - 1) * _MESSAGES

    best = min(range(1, min(cores, num_envs) + 1), key=cost)
    return best if steps * (cost(1) - cost(best)) > _START else 1


def shares(num_envs: int, num_workers: int) -> list[slice]:
    """The simulators of each process, as even as can be."""
    bounds = [num_envs * k // num_workers for k in range(num_workers + 1)]
    return [slice(first, stop) for first, stop in pairwise(bounds)]


def serve(fd: int) -> None:
    """Answer a `Worker`'s calls until the other end of the pipe is gone, as it is too when the main process was killed.

    Args:
        fd: file descriptor of this end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    pipe = Connection(fd)
    simulators: Simulators | None = None
    try:
        env_id, frame_skip, kwargs, shared, rows = pipe.recv()
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
