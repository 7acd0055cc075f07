"""What update rules do with a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn


def minibatches(
    batch: TensorDictBase, keys: Sequence[str], size: int, sequence_length: int = 1
) -> Iterator[dict[str, Tensor]]:
    """One pass over a batch in a new random order.

    Each step comes at most once. The steps that do not fill a minibatch are left out, different ones in each pass.

    Args:
        batch: transitions ``[num_envs, steps]``.
        keys: the entries of a minibatch.
        size: steps of a minibatch.
        sequence_length: consecutive steps that stay together, in order: the sequences are what is shuffled.

    Yields:
        Entries ``[size, ...]``.
    """
    count = batch.numel() // size * size
    order = torch.randperm(batch.numel() // sequence_length, device=batch.device)[: count // sequence_length]
    if sequence_length > 1:
        order = (order[:, None] * sequence_length + torch.arange(sequence_length, device=batch.device)).flatten()
    columns = (batch[key].flatten(0, 1)[order].split(size) for key in keys)
    for entries in zip(*columns, strict=True):
        yield dict(zip(keys, entries, strict=True))


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
