"""One learner alone, and what several offer as well (`process_group`). Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from rlexp.errors import RlexpError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Taken: TypeAlias = "tuple[int, Tensor, Tensor]"
"""Count, mean and variance of samples."""

POSITION = "_position"
"""The entry of a minibatch that holds the positions of this learner's steps in it; absent with one learner."""


LEARNERS = "learners"
"""The entry of a part of a checkpoint that has one for each of several learners."""


class GroupError(RlexpError):
    """The learners of a run cannot go on together; the message says which of them failed, and why."""


class Group:
    """A single learner, for which every method returns what it is given. `ProcessGroup` is for several.

    Each learner has as many rows (environments) as the others, those of the lowest rank first. torch's generators stay
    in step on all ranks: what is drawn from them is drawn for all rows, or inside of `own_draws`.

    Attributes:
        rank: of this learner, from 0.
        size: how many there are.
    """

    rank, size = 0, 1

    @property
    def main(self) -> bool:
        """Whether this learner writes the run's folder and evaluates."""
        return self.rank == 0

    def seed(self, seed: int) -> None:
        """Seed what each rank draws for itself, after `seed_everything`."""

    def stream(self) -> dict[str, Any]:
        """The state of `own_draws`; empty where that is no stream of its own."""
        return {}

    def load_stream(self, state: Mapping[str, Any]) -> None:
        """Continue from a mapping that holds what `stream` returned."""

    def own_draws(self) -> AbstractContextManager[None]:
        """Inside, torch draws from a stream of this rank's own."""
        return nullcontext()

    def draw(self, sample: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        """This rank's rows of a sample for all rows.

        Args:
            sample: from a shape to random numbers.
            shape: of this rank's rows ``[rows, ...]``.
        """
        return sample(shape)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks ``[size * rows, ...]``, from this rank's ``[rows, ...]``."""
        return rows

    def rows(self, values: Tensor) -> Tensor:
        """This rank's of all rows."""
        return values

    def moments(self, taken: Sequence[Taken]) -> list[Taken]:
        """Moments of this rank's samples, and of those of the other ranks, in the order of ranks."""
        return list(taken)

    def combine(self, grad: Tensor, record: dict[str, Tensor], position: Tensor | None, size: int) -> dict[str, Tensor]:
        """Make the gradient and the record of this rank's share of a minibatch those of the whole minibatch.

        Args:
            grad: of a mean over the share's steps, one vector; it becomes that of the mean over the minibatch.
            record: scalars, means over the share's steps; and entries ``[n]``, a number for each of them.
            position: where in the minibatch those steps are ``[n]``; it may be empty.
            size: steps of the minibatch.

        Returns:
            The record: means over the minibatch, and entries ``[size]``.
        """
        return record

    def broadcast(self, values: Iterable[object]) -> None:
        """Overwrite the tensors among the values with those of rank 0."""

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, or raises, on rank 0, where alone it is called; it must be picklable."""
        return make()

    def joined(self, value: Any) -> Any:
        """A part of a checkpoint, from the part of each rank; complete on rank 0 alone."""
        return value

    def union(self, texts: Sequence[str]) -> list[str]:
        """The texts of all ranks, each once; complete on rank 0 alone."""
        return list(texts)

    def own(self, joined: Any) -> Any:
        """This rank's part of what `joined` returned."""
        return joined

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers, which may be negative."""
        return number

    def check_equal(self, what: str, number: int) -> None:
        """Raise a `GroupError` on every rank where the ranks' numbers, below 2^63, are not all the same."""

    def reporting(self) -> AbstractContextManager[None]:
        """What is raised inside is told to the other ranks, which otherwise learn only that this one has ended."""
        return nullcontext()

    def report(self, failure: str) -> None:
        """Tell the other ranks why this one is about to end."""


ALONE = Group()


def launched() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def train_command(learners: int) -> str:
    """The command that trains with so many learners."""
    return "rlexp-train" if learners == 1 else f"torchrun --nproc-per-node={learners} --no-python rlexp-train"


def process_name() -> str:
    """``rank 1 of 2``, as torchrun has it; empty where there is one process, and for rank 0, which speaks for all."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank} of {launched()}" if launched() > 1 and rank != "0" else ""
