"""The processes of one run with several learners, as torchrun starts them, forked from a warm one."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import warm
from commands import _main, clean_environment
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torchrl.envs import TransformedEnv
from warm import processes

from rlexp import Trainer
from rlexp.distributed import GroupError, process_group
from rlexp.distributed.process_group import ProcessGroup
from rlexp.envs import normalization
from rlexp.envs.normalization import Moments, RunningObservationNorm, observation_norms
from rlexp.envs.state import transforms_state
from rlexp.training import parts

Prepare = Callable[[int], None]


def launch_ranks(
    arguments: list[str], cwd: Path, size: int = 2, prepare: Prepare | None = None
) -> list[ForkServerProcess]:
    """Start a training in so many processes, which write to ``output0.txt`` and so on.

    Args:
        arguments: of rlexp-train.
        cwd: where it runs, and its home.
        size: how many; 1 starts it without torchrun's variables.
        prepare: called in each process before, with its rank.
    """
    warm.start()
    port = serve_store()
    started = []
    for rank in range(size):
        process = processes.Process(target=_rank, args=(rank, size, port, arguments, cwd, prepare))
        process.start()
        started.append(process)
    return started


def train_ranks(arguments: list[str], cwd: Path, size: int = 2, prepare: Prepare | None = None) -> None:
    """Train to the end."""
    started = launch_ranks(arguments, cwd, size, prepare)
    for rank, process in enumerate(started):
        process.join(120)
        assert process.exitcode == 0, output(cwd, rank)


def output(cwd: Path, rank: int) -> str:
    """What a rank has printed."""
    return (cwd / f"output{rank}.txt").read_text()


_stores: list[TCPStore] = []  # each serves until it is collected


def serve_store() -> int:
    """A store that the processes of one run meet at, as torchrun's agent serves it; its port."""
    _stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    return _stores[-1].port


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets in the environment of each process."""
    if size == 1:
        return {}
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    }


def _rank(rank: int, size: int, port: int, arguments: list[str], cwd: Path, prepare: Prepare | None) -> None:
    if prepare is not None:
        prepare(rank)
    path = str(cwd / f"output{rank}.txt")
    environment = clean_environment(cwd, **variables(rank, size, port))
    _main("rlexp-train", tuple(arguments), str(cwd), environment, (path, path))


def start_alike(rank: int) -> None:
    """Begin the statistics without steps, whose number depends on how many environments end first; keep what is left.

    At the end each rank writes what it holds to ``rank0.pt`` and so on.
    """

    def init(env: TransformedEnv, random_steps: int) -> None:
        for norm in observation_norms(env):
            assert isinstance(norm, RunningObservationNorm)
            zeros = torch.zeros(env.base_env.observation_spec["observation"].shape[-1], dtype=torch.float64)
            for buffer in (norm.loc, norm.scale):
                buffer.materialize(zeros.shape, dtype=torch.float64)
            norm.loc, norm.scale = zeros, torch.ones_like(zeros)
            norm.moments = Moments(zeros.shape)
            norm.moments.count.fill_(random_steps)

    parts.init_normalization = init  # type: ignore[attr-defined]
    assert normalization.init_normalization is not init
    close = Trainer.close

    def keep(self: Trainer) -> None:
        held = {"transforms": transforms_state(self.env), "learner": self.learner.state_dict()}
        torch.save(held | {"rng": torch.get_rng_state(), "weights": self.learner.weights.data}, f"rank{rank}.pt")
        close(self)

    Trainer.close = keep  # type: ignore[method-assign]


def break_second(rank: int) -> None:
    """A reward of the second learner's second batch is not finite."""
    if rank == 1:
        collect = Trainer.collect

        def broken(self: Trainer) -> Any:
            if self.iteration == 1:
                batches = self._batches

                def one() -> Any:
                    batch = next(batches)
                    batch["next", "reward"][0, 0] = float("nan")
                    yield batch

                self._batches = one()
            return collect(self)

        Trainer.collect = broken  # type: ignore[method-assign]


def differ(rank: int) -> None:
    """The second learner's weights are others after the first update."""
    if rank == 1:
        update = Trainer.update

        def broken(self: Trainer, batch: Any) -> dict[str, float]:
            self.learner.weights.data[0] += 1e-6
            return update(self, batch)

        Trainer.update = broken  # type: ignore[method-assign]


def wait_silently(rank: int, port: int, answers: Any) -> None:
    """One reduction that the second process does not come to."""
    os.environ |= variables(rank, 2, port)
    process_group._GRACE = 1.0  # seconds
    store, *_ = next(rendezvous("env://"))
    group = ProcessGroup(store, rank, 2, timedelta(seconds=5))  # in which it also has to come up
    if rank == 1:
        answers.recv()
        os._exit(0)
    try:
        group.largest(1)
    except GroupError as error:
        answers.send(str(error))
        group.close()
