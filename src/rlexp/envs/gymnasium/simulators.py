"""Gymnasium simulators stepped one after another, in this process or a worker, on shared arrays. Imports no torch."""

from __future__ import annotations

import logging
import math
import mmap
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK, PolicySpace, choices, is_masked
from rlexp.envs.entries import row_type
from rlexp.envs.errors import SimulatorError as SimulatorError
from rlexp.envs.gymnasium.lives import END_OF_LIFE, has_lives
from rlexp.envs.gymnasium.making import Env, MaskSource, make
from rlexp.envs.gymnasium.raw_values import check_every_step, check_observation
from rlexp.envs.gymnasium.snapshot import check_state, get_state, models, set_state
from rlexp.envs.saving import State, StateUnavailableError

log = logging.getLogger(__name__)


@dataclass
class Arrays:
    """Where simulators write, row ``i`` for simulator ``i``.

    Attributes:
        observation: ``[num_envs, *observation]``, the simulator's own type; of several entries ``[num_envs]``, with a
            field for each (`rlexp.envs.entries`).
        reward: ``[num_envs]`` float64.
        terminated: ``[num_envs]`` bool.
        truncated: ``[num_envs]`` bool.
        reset_observation: like ``observation``; what the next episode begins with, of simulators that were reset.
        was_reset: ``[num_envs]`` bool, the last step ended an episode, and the simulator was reset at once.
        action: ``[num_envs, *action]``, what the next step does; int64 where it chooses.
        action_mask: ``[num_envs, values]`` bool, which values of its choices the next action may have; without masks,
            ``[num_envs, 0]``.
        reset_action_mask: like ``action_mask``; of ``reset_observation``.
        end_of_life: ``[num_envs, 1]`` bool, the last step lost a life, and the game goes on; without lives
            ``[num_envs, 0]``.
    """

    observation: npt.NDArray[Any]
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    reset_observation: npt.NDArray[Any]
    was_reset: npt.NDArray[np.bool_]
    action: npt.NDArray[Any]
    action_mask: npt.NDArray[np.bool_]
    reset_action_mask: npt.NDArray[np.bool_]
    end_of_life: npt.NDArray[np.bool_]

    def rows(self, chosen: slice) -> Arrays:
        """Views of some simulators' rows."""
        return Arrays(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Simulators:
    """Copies of a Gymnasium environment, stepped in this process.

    Args:
        env_id: Gymnasium's id.
        num_envs: number of copies.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        kwargs: of ``gymnasium.make``.
        pixels: as in `rlexp.envs.gymnasium.making.make`, which then repeats the actions itself.
        action_mask, flatten: as there.
        first: the number of the first one, for errors.

    Raises:
        ConfigError: the environment cannot be made.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        frame_skip: int,
        kwargs: Mapping[str, Any],
        pixels: tuple[int, int] | None,
        action_mask: MaskSource = False,
        flatten: bool = False,
        first: int = 0,
    ) -> None:
        self._env_id, self._first = env_id, first
        self._at: int | None = None
        self._calls = 0
        self.envs: list[Env] = []
        self.arrays: Arrays
        repeat = 1 if pixels is None else frame_skip
        try:
            for _ in range(num_envs):
                env = make(env_id, kwargs, pixels=pixels, repeat=repeat, action_mask=action_mask, flatten=flatten)
                self.envs.append(env)
            self.masked, self.lives = is_masked(self.envs[0]), has_lives(self.envs[0])
            if self.masked and frame_skip > 1:
                message = "must be 1 with an action_mask: the second frame may not allow what the first one did."
                raise ConfigError([Problem("env.frame_skip", message, str(frame_skip))])
        except ConfigError:
            self.close()
            raise
        except Exception as error:
            self.close()
            message = f"cannot be made: {error}"
            if "unexpected keyword argument 'render_mode'" in str(error):
                message = "cannot be rendered: its constructor takes no render_mode (docs/environments.md)."
            raise ConfigError([Problem("env.id", message, env_id)]) from error
        self._models = [models(env) for env in self.envs]
        # With pixels `make` repeats actions below the camera: frames between two actions are neither drawn nor stacked.
        self._repeat = frame_skip if pixels is None else 1

    def step(self) -> None:
        """Step every simulator by its row of ``action``, and reset at once those that end an episode.

        A process's finished simulators are reset while the others still step theirs, and nobody need ask for it.

        Raises:
            ConfigError: a simulator gives what it does not declare.
            SimulatorError: a simulator raised, or gives what would be misread.
        """
        arrays = self.arrays
        with self._named():
            for i, env in enumerate(self.envs):
                self._at, total = i, 0.0
                for _ in range(self._repeat):
                    # A copy each time: a simulator may keep its last action, or change it in place.
                    observation, reward, terminated, truncated, info = env.step(arrays.action[i].copy())
                    total += float(reward)
                    if terminated or truncated:
                        break
                row = self._row(env, observation)
                if terminated.__class__ not in _FLAGS or truncated.__class__ not in _FLAGS:
                    raise TypeError(f"terminated and truncated are {terminated!r} and {truncated!r}, not bool")
                arrays.observation[i], arrays.reward[i] = row, total
                arrays.terminated[i], arrays.truncated[i] = terminated, truncated
                if self.masked:
                    arrays.action_mask[i] = info[ACTION_MASK]
                if self.lives:
                    arrays.end_of_life[i] = info[END_OF_LIFE]
                arrays.was_reset[i] = ended = terminated or truncated
                if ended:
                    arrays.reset_observation[i] = self._reset(env, None, arrays.reset_action_mask[i])

    def reset(self, seeds: Mapping[int, int | None]) -> None:
        """Reset simulators, each with its seed; None goes on with the random stream it has.

        Raises:
            ConfigError: a simulator gives what it does not declare.
            SimulatorError: a simulator raised, or gives what would be misread.
        """
        arrays = self.arrays
        with self._named():
            for i, seed in seeds.items():
                self._at = i
                arrays.observation[i] = self._reset(self.envs[i], seed, arrays.action_mask[i])
                arrays.terminated[i] = arrays.truncated[i] = arrays.was_reset[i] = arrays.end_of_life[i] = False

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the simulator that fails."""
        self._calls += 1
        try:
            yield
        except (ConfigError, SimulatorError):
            raise
        except (Exception, SystemExit) as error:
            called = "called sys.exit" if isinstance(error, SystemExit) else "failed"
            message = f"{self._name(self._at or 0)} {called}: {type(error).__name__}: {error}"
            raise SimulatorError(message) from error
        finally:
            self._at = None

    def _reset(self, env: Env, seed: int | None, mask: npt.NDArray[np.bool_]) -> Any:
        """Reset a simulator, and put the first mask of the episode into ``mask``."""
        observation, info = env.reset(seed=seed)
        if self.masked:
            mask[:] = info[ACTION_MASK]
        return self._row(env, observation)

    def _row(self, env: Env, observation: Any) -> npt.NDArray[Any]:
        """An observation that its row holds as it is."""
        row: npt.NDArray[Any] = np.asarray(observation)
        rows = self.arrays.observation
        if row.shape != rows.shape[1:]:  # it would broadcast
            raise TypeError(f"the observation has shape {row.shape}, not {rows.shape[1:]}")
        if row.dtype != rows.dtype:  # integers would wrap
            check_observation(env.observation_space, row)
        return row

    def _name(self, i: int) -> str:
        return f"simulator {self._first + i} of {self._env_id}"

    @property
    def at(self) -> tuple[int, str] | None:
        """How many calls were made, and the simulator that has not returned from the newest; None if all have."""
        i = self._at
        return None if i is None else (self._calls, self._name(i))

    def check_every_step(self) -> None:
        """Check all raw values, and not only those of the first steps (`rlexp.envs.gymnasium.raw_values.RawValues`)."""
        for env in self.envs:
            check_every_step(env)

    def states(self) -> list[State]:
        """The state of each simulator.

        Raises:
            StateUnavailableError: one cannot give its state.
        """
        states = [get_state(env) for env in self.envs]
        for state, before in zip(states, self._models, strict=True):
            if [data["model"] for layer in state["layers"] for data in layer["physics"].values()] != before:
                raise StateUnavailableError(f"{self._env_id} changes its MuJoCo model as it runs, which is not saved")
        return states

    def check_states(self, states: Sequence[State]) -> None:
        """Make sure that the states fit.

        Raises:
            StateUnavailableError: they are not of these simulators.
        """
        for env, state in zip(self.envs, states, strict=True):
            check_state(env, state)

    def load_states(self, states: Sequence[State]) -> None:
        """Put states that fit (`check_states`) into the simulators."""
        for env, state in zip(self.envs, states, strict=True):
            set_state(env, state)

    def close(self) -> None:
        """Close every simulator; one that cannot be closed is logged, and spoils nothing."""
        for i, env in enumerate(self.envs):
            try:
                env.close()
            except Exception as error:
                log.warning("%s cannot be closed: %s: %s", self._name(i), type(error).__name__, error)


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


_FLAGS = (bool, np.bool_)


class _WorkersSimulators(Simulators):
    """Those of a worker process, which also seed its global generators, for simulators that draw from them."""

    def reset(self, seeds: Mapping[int, int | None]) -> None:
        """As `Simulators.reset`."""
        if (first := next((seed for seed in seeds.values() if seed is not None), None)) is not None:
            random.seed(first)
            np.random.seed(first % 2**32)
        super().reset(seeds)


def worker_simulators(
    env_id: str,
    frame_skip: int,
    kwargs: Mapping[str, Any],
    pixels: tuple[int, int] | None,
    action_mask: MaskSource,
    flatten: bool,
    shared: SharedArrays,
    rows: slice,
) -> Simulators:
    """A worker process's simulators, which write their rows of the shared arrays."""
    simulators = _WorkersSimulators(
        env_id, rows.stop - rows.start, frame_skip, kwargs, pixels, action_mask, flatten, rows.start
    )
    simulators.arrays = shared.open().rows(rows)
    return simulators


def shares(num_envs: int, num_workers: int) -> list[slice]:
    """The simulators of each process, as even as can be."""
    bounds = [num_envs * k // num_workers for k in range(num_workers + 1)]
    return [slice(first, stop) for first, stop in pairwise(bounds)]


def allocate(
    num_envs: int,
    observation: spaces.Box | spaces.Dict,
    action: PolicySpace,
    *,
    masked: bool = False,
    lives: bool = False,
) -> Arrays:
    """Arrays for ``num_envs`` simulators with these spaces."""
    mask = np.zeros((num_envs, sum(choices(action) or []) if masked else 0), np.bool_)
    shape, dtype = row_type(observation)
    return Arrays(
        np.zeros((num_envs, *shape), dtype=dtype),
        np.zeros(num_envs),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros((num_envs, *shape), dtype=dtype),
        np.zeros(num_envs, dtype=np.bool_),
        np.zeros((num_envs, *action.shape), dtype=action.dtype if isinstance(action, spaces.Box) else np.int64),
        mask,
        mask.copy(),
        np.zeros((num_envs, int(lives)), np.bool_),
    )


def split_seeds(seeds: Mapping[int, int | None], parts: Sequence[slice]) -> list[dict[int, int | None]]:
    """``seeds`` by process, counted from each one's first simulator."""
    return [{i - p.start: seed for i, seed in seeds.items() if p.start <= i < p.stop} for p in parts]
