"""Several learners of one run: ``torch.distributed`` between processes that torchrun has started."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rlexp.distributed.group import LEARNERS, Group, GroupError, Taken
from rlexp.machine import process_state, this_process

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)  # an evaluation, which the other ranks wait for, must not take longer
_GRACE = 5.0  # seconds in which the cause of a lost connection shows
_CAUSE = "cause"
_STREAM = "own_stream"


class ProcessGroup(Group):
    """Several learners, one process each: gloo between CPUs, and NCCL between CUDA devices.

    Results do not depend on which process is fast: gathered rows and moments are in the order of ranks, and a reduction
    gives every rank the same numbers bit for bit.

    Args:
        store: the key-value store that all processes reach.
        rank: of this process, from 0.
        size: how many there are.
        timeout: how long a process waits for the others before it gives up.

    Raises:
        GroupError: the other processes did not come.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta = _TIMEOUT) -> None:
        self.rank, self.size = rank, size
        self._store = PrefixStore("rlexp", store)
        self._device = torch.device("cpu")
        backend = "gloo"
        if 0 < int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= torch.cuda.device_count():
            backend = "cpu:gloo,cuda:nccl"
            self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
            torch.cuda.set_device(self._device)
        self._own_state = self._torch_state()
        self._names = [""] * size
        with self._together():
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            dist.all_gather_object(self._names, this_process())

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """The group that torchrun's variables describe."""
        try:
            store, rank, size = next(rendezvous("env://"))
        except (RuntimeError, ValueError) as error:
            raise GroupError(f"The processes that torchrun has started do not find each other: {error}") from error
        return cls(store, rank, size)

    def close(self) -> None:
        """Leave the group."""
        with suppress(RuntimeError, ValueError):  # another process has left it in the middle of something
            dist.destroy_process_group()

    def seed(self, seed: int) -> None:
        """Streams for each rank: Python's and NumPy's generators, which simulators may use, and `own_draws`."""
        own = int(np.random.SeedSequence(seed, spawn_key=(self.rank,)).generate_state(1)[0])
        if not self.main:
            random.seed(own)
            np.random.seed(own)
        shared = self._torch_state()
        torch.manual_seed(own)
        self._own_state = self._torch_state()
        self._load_torch_state(shared)

    def stream(self) -> dict[str, Any]:
        """See `Group`."""
        return {_STREAM: list(self._own_state)}

    def load_stream(self, state: Mapping[str, Any]) -> None:
        """See `Group`."""
        self._own_state = list(state[_STREAM])

    @contextmanager
    def own_draws(self) -> Iterator[None]:
        """See `Group`."""
        shared = self._torch_state()
        self._load_torch_state(self._own_state)
        try:
            yield
        finally:
            self._own_state = self._torch_state()
            self._load_torch_state(shared)

    def draw(self, sample: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        """See `Group`."""
        return self.rows(sample((self.size * shape[0], *shape[1:])))

    def gather(self, rows: Tensor) -> Tensor:
        """See `Group`."""
        rows = rows.contiguous()
        found = [torch.empty_like(rows) for _ in range(self.size)]
        with self._together():
            dist.all_gather(found, rows)
        return torch.cat(found)

    def rows(self, values: Tensor) -> Tensor:
        """See `Group`."""
        return values.chunk(self.size)[self.rank]

    def moments(self, taken: Sequence[Taken]) -> list[Taken]:
        """See `Group`."""
        found = []
        for n, mean, var in taken:
            packed = torch.cat([mean.new_tensor([n]), mean.flatten(), var.flatten()])
            for row in self.gather(packed[None]):
                count, means, variances = row.split([1, mean.numel(), var.numel()])
                found.append((int(count), means.view_as(mean), variances.view_as(var)))
        return found

    def combine(self, grad: Tensor, record: dict[str, Tensor], position: Tensor | None, size: int) -> dict[str, Tensor]:
        """See `Group`. All of it is one reduction."""
        assert position is not None
        share = len(position) / size
        parts = [grad * share]
        for value in record.values():
            if value.dim():
                placed = value.new_zeros(size)
                placed[position] = value[: len(position)]
                parts.append(placed)
            else:
                parts.append((value * share)[None])
        packed = torch.cat(parts)
        with self._together():
            dist.all_reduce(packed)
        summed, *whole = packed.split([len(part) for part in parts])
        grad.copy_(summed)
        return {
            name: (part if value.dim() else part[0]).to(value)
            for (name, value), part in zip(record.items(), whole, strict=True)
        }

    def broadcast(self, values: Iterable[object]) -> None:
        """See `Group`."""
        with self._together():
            for value in values:
                if isinstance(value, Tensor):
                    dist.broadcast(value, src=0)

    def from_main(self, make: Callable[[], T]) -> T:
        """See `Group`."""
        value, raised = None, None
        if self.main:
            try:
                value = make()
            except Exception as error:  # the others cannot go on without it either
                raised = error
        found = [value, raised]
        with self._together():
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        if isinstance(found[1], Exception):
            raise found[1]
        return found[0]  # type: ignore[return-value]

    def joined(self, value: Any) -> Any:
        """See `Group`."""
        parts: list[Any] | None = [None] * self.size if self.main else None
        with self._together():
            dist.gather_object(value, parts, dst=0)
        return {LEARNERS: parts}

    def union(self, texts: Sequence[str]) -> list[str]:
        """See `Group`."""
        parts = self.joined(list(texts))[LEARNERS] or [texts]
        return list(dict.fromkeys(text for part in parts for text in part))

    def own(self, joined: Any) -> Any:
        """See `Group`."""
        return joined[LEARNERS][self.rank]

    def largest(self, number: int) -> int:
        """See `Group`."""
        found = torch.tensor([number])
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def check_equal(self, what: str, number: int) -> None:
        """See `Group`."""
        found = self.gather(torch.tensor([number])).tolist()
        if unlike := [rank for rank in range(self.size) if found[rank] != found[0]]:
            message = f"{what} of rank {unlike[0]} of {self.size} differ from those of rank 0."
            raise GroupError(f"{message} All processes need the same versions, and processors that compute alike.")

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """See `Group`."""
        try:
            yield
        except GroupError:  # of another rank's failure, which has been told
            raise
        except BaseException as error:
            self.report(f"{type(error).__name__}: {error}")
            raise

    def report(self, failure: str) -> None:
        """See `Group`; the first to fail is the one that counts."""
        with suppress(RuntimeError):  # the store is gone, and with it all others
            self._store.compare_set(_CAUSE, "", f"rank {self.rank} of {self.size} failed: {failure}")

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Wraps a collective operation: an error in one comes from another rank."""
        try:
            yield
        except (RuntimeError, EOFError) as error:
            raise GroupError(self._cause(error)) from error

    def _cause(self, error: Exception) -> str:
        """Which rank does not take part any more, and why."""
        try:
            self._store.set(f"waited/{self.rank}", "")
            end = time.monotonic() + _GRACE
            while time.monotonic() < end:
                if self._store.check([_CAUSE]):
                    return self._store.get(_CAUSE).decode()
                states = [process_state(name) for name in self._names]
                if "dead" in states:
                    rank = states.index("dead")
                    place = self._names[rank].splitlines()[0]
                    self._store.compare_set(_CAUSE, "", f"rank {rank} of {self.size} has died ({place}).")
                else:
                    time.sleep(0.05)
            silent = [rank for rank in range(self.size) if not self._store.check([f"waited/{rank}"])]
            if silent:
                names = ", ".join(f"rank {rank} of {self.size} ({self._names[rank].splitlines()[0]})"
                                  for rank in silent)  # fmt: skip
                return f"no answer from {names}: {error}"
        except (RuntimeError, IndexError):  # the store is gone as well
            pass
        return f"The connection between the learners is lost: {error}"

    def _torch_state(self) -> list[Tensor]:
        state = [torch.get_rng_state()]
        return [*state, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else state

    def _load_torch_state(self, state: Sequence[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for cuda in state[1:]:
            torch.cuda.set_rng_state(cuda, self._device)
