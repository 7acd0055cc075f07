"""One worker's share of a batch: what it is, who collects it, and how a main process talks to all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import ObservationNorm

from rlexp.config import ConfigError, Problem
from rlexp.envs.normalization import RunningObservationNorm, observation_norms
from rlexp.envs.raw_observations import keep_raw
from rlexp.envs.saving import State
from rlexp.envs.state import (
    episodes_state,
    load_episodes_state,
    load_transforms_state,
    transforms_state,
)
from rlexp.policies.recurrent import carry_state
from rlexp.seeding import load_rng_state, rng_state, seed_everything
from rlexp.workers import WorkerError as WorkerError

if TYPE_CHECKING:
    from rlexp.collectors import CollectorConfig, Source

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = Mapping[str, Array]
Statistics: TypeAlias = Sequence[tuple[Array, Array]]


def share_seed(seed: int, index: int) -> int:
    """The seed of one share's simulators and generators: of no other share, and of no evaluation."""
    return int(np.random.SeedSequence(seed, spawn_key=(2, index)).generate_state(1)[0])


class ShareWorkers(Protocol):
    """A `ShareWorker` in each of several processes, which work at the same time."""

    def ask(self, method: str, *arguments: object) -> None:
        """Let each call a method, all with the same arguments: plain values and NumPy arrays.

        Raises:
            WorkerError: one died.
        """

    def answers(self) -> list[Any]:
        """What the calls of the newest `ask` returned, in the order of the shares.

        Raises:
            ConfigError, StateUnavailableError: as a worker raised it; all of them go on.
            WorkerError: one raised something else, died, or did not answer in time.
        """

    def close(self) -> None:
        """End the processes, whatever they are at."""


@dataclass(frozen=True)
class Share:
    """What one worker collects; picklable.

    Attributes:
        source: what the whole batch comes from.
        collector: how the share is collected.
        index: which one it is, from 0.
        of: how many there are.
    """

    source: Source
    collector: CollectorConfig
    index: int
    of: int

    @property
    def num_envs(self) -> int:
        """Environments of this share."""
        return self.source.env.num_envs // self.of

    def __str__(self) -> str:
        first = self.index * self.num_envs
        rows = f"environments {first} to {first + self.num_envs - 1} of {self.source.env.name}"
        return f"collector worker {self.index + 1} of {self.of} ({rows})"


class ShareWorker:
    """Collects a share with environments and a policy of its own, on the CPU and on one thread.

    It receives the weights and the normalisation statistics before each batch and keeps them throughout it. The raw
    observations of the batch go back as their moments, so that whoever owns the statistics takes them in once.
    """

    def __init__(self, share: Share) -> None:
        self._share = share

    def start(self, weights: Weights, statistics: Statistics) -> None:
        """Build and reset the environments; a stream of random numbers of its own for each share.

        Raises:
            ConfigError: the share's collector does not support the environment, a transform or the policy.
        """
        share, cpu = self._share, torch.device("cpu")
        torch.set_num_threads(1)
        seed = share_seed(share.source.seed, share.index)
        seed_everything(seed)
        self._env = share.source.env.build(share.num_envs)
        if self._env.batch_size != (share.num_envs,):
            made = f"each worker makes {self._env.batch_size[0]} simulators, and {share.num_envs} are its share"
            raise ConfigError([Problem("collector.num_workers", f"{made}: env.make needs an argument num_envs.")])
        self._env.set_seed(seed)
        self._take_statistics(statistics)
        self._actor = share.source.policy.build(self._env, cpu).actor
        self._take_weights(weights)
        carry_state(self._env, self._actor)
        if share.source.raw:
            keep_raw(self._env)
        self._collector = share.collector.build(self._env, self._actor, share.source, cpu)
        self._batches = iter(self._collector)

    def collect(self, weights: Weights, statistics: Statistics) -> dict[str, Any]:
        """The next share of a batch.

        Returns:
            ``batch``, nested entries ``[num_envs, steps, ...]``, ``traj_ids`` unlike those of the other shares; and
            ``moments``, for each running normalisation those of what was stepped to (`RunningObservationNorm.take`).
        """
        self._take_weights(weights)
        self._take_statistics(statistics)
        batch: TensorDictBase = next(self._batches)
        entries: dict[str, Any] = batch.numpy()
        entries["collector"]["traj_ids"] = entries["collector"]["traj_ids"] * self._share.of + self._share.index
        running = [norm.take() for norm in observation_norms(self._env) if isinstance(norm, RunningObservationNorm)]
        moments = [[(n, mean.numpy(), var.numpy()) for n, mean, var in taken] for taken in running]
        # The order of a tensordict's entries may follow the hashes of their names, which differ between processes.
        return {"batch": _sorted(entries), "moments": moments}

    def simulator_state(self) -> State:
        """The environments in the middle of their episodes.

        Raises:
            StateUnavailableError: they cannot be saved.
        """
        return episodes_state(self._env)

    def load_simulator_state(self, states: Sequence[State]) -> None:
        """Take this share's of all shares' `simulator_state`.

        Raises:
            StateUnavailableError: it is another simulator's.
        """
        load_episodes_state(self._env, states[self._share.index])

    def state(self) -> dict[str, Any]:
        """All else that decides what the next share is."""
        return {
            "collector": self._collector.state_dict(),
            "transforms": transforms_state(self._env),
            "rng": rng_state(),
        }

    def load_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Take this share's of all shares' `state`."""
        state = states[self._share.index]
        self._collector.load_state_dict(state["collector"])
        load_transforms_state(self._env, state["transforms"])
        load_rng_state(state["rng"])

    def close(self) -> None:
        """Close the environments."""
        if hasattr(self, "_env") and not self._env.is_closed:
            self._env.close()

    def _take_weights(self, weights: Weights) -> None:
        self._actor.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def _take_statistics(self, statistics: Statistics) -> None:
        norms: list[ObservationNorm] = observation_norms(self._env)
        for norm, (loc, scale) in zip(norms, statistics, strict=True):
            norm.loc, norm.scale = torch.tensor(loc), torch.tensor(scale)


def _sorted(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _sorted(value) if isinstance(value, Mapping) else value for key, value in sorted(entries.items())}
