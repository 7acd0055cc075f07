"""What update rules do with a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlexp.distributed import ALONE, POSITION, Group
from rlexp.losses.module import standardized


def minibatches(
    batch: TensorDictBase,
    keys: Sequence[str],
    size: int,
    sequence_length: int = 1,
    group: Group = ALONE,
    standardize: Sequence[str] = (),
) -> Iterator[dict[str, Tensor]]:
    """One pass over a batch in a new random order.

    Each step comes at most once. The steps that do not fill a minibatch are left out, different ones in each pass.

    Args:
        batch: transitions ``[num_envs, steps]``.
        keys: the entries of a minibatch.
        size: steps of a minibatch.
        sequence_length: consecutive steps that stay together, in order: the sequences are what is shuffled.
        group: the learners, whose batches together are what is passed over.
        standardize: with several learners, the entries that are standardised over each minibatch, of which a learner
            itself sees a share.

    Yields:
        Entries ``[size, ...]``. With several learners, those of a minibatch's steps that are in this one's batch,
        and `POSITION`.
    """
    total = group.size * batch.numel()
    count = total // size * size
    order = torch.randperm(total // sequence_length, device=batch.device)[: count // sequence_length]
    if sequence_length > 1:
        order = (order[:, None] * sequence_length + torch.arange(sequence_length, device=batch.device)).flatten()
    if group.size > 1:
        yield from _shares(batch, keys, order.split(size), sequence_length, group, standardize)
        return
    columns = (batch[key].flatten(0, 1)[order].split(size) for key in keys)
    for entries in zip(*columns, strict=True):
        yield dict(zip(keys, entries, strict=True))


def _shares(
    batch: TensorDictBase,
    keys: Sequence[str],
    whole: Sequence[Tensor],
    least: int,
    group: Group,
    standardize: Sequence[str],
) -> Iterator[dict[str, Tensor]]:
    """This learner's share of each minibatch: of ``whole``, the numbers of its steps in the batches of all learners."""
    entries = {key: batch[key].flatten(0, 1) for key in keys}
    of_all = {key: group.gather(entries[key]) for key in standardize}
    for steps in whole:
        position = (steps // batch.numel() == group.rank).nonzero()[:, 0]
        # A learner without steps in a minibatch computes some of its other steps, which then get weight 0.
        taken = position if len(position) else torch.arange(least, device=steps.device)
        own = steps[taken] % batch.numel()
        share = {key: entry[own] for key, entry in entries.items()}
        share |= {key: standardized(entry[steps])[taken] for key, entry in of_all.items()}
        yield share | {POSITION: position}


def stacked(records: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each entry of the records as one tensor ``[records, ...]``."""
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def explained_variance(value: Tensor, target: Tensor) -> float:
    """Share of the targets' variance that the critic explains: 1 is all of it, 0 none, negative worse than none."""
    variance = target.var()
    return float(1 - (target - value).var() / variance) if variance > 0 else 0.0


def clip_grad_norm(weights: nn.Parameter, max_norm: float) -> Tensor:
    """Scale the gradient down to norm ``max_norm`` where it is longer, and return the norm that it had.

    ``torch.nn.utils.clip_grad_norm_`` for one tensor, at a third of its cost.
    """
    grad = cast("Tensor", weights.grad)
    norm: Tensor = torch.linalg.vector_norm(grad)
    grad.mul_((max_norm / (norm + 1e-6)).clamp_max(1))
    return norm
