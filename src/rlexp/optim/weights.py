"""All parameters of a model as views of one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def flatten(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """One vector that holds all of ``parameters``, and its gradient all of theirs: they become views of it.

    Elementwise operations, such as clipping and Adam, then cost one call instead of one per parameter.
    """
    flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    _share(flat, parameters)
    return flat


def split(flat: nn.Parameter, sizes: Sequence[int]) -> list[nn.Parameter]:
    """Views of a vector and of its gradient, one after the other, as parameters of their own."""
    parts = [nn.Parameter(flat.new_empty(size)) for size in sizes]
    _share(flat, parts)
    return parts


def _share(flat: nn.Parameter, parameters: Sequence[nn.Parameter]) -> None:
    assert flat.grad is not None
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, data, grad in zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True):
        parameter.data, parameter.grad = data.view_as(parameter), grad.view_as(parameter)
