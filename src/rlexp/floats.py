"""The type of the numbers that networks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make tensors float32 where no type is given, whatever the user's ``torch.set_default_dtype``, which comes back.

    Networks, observations and what a learner keeps are float32, and layers refuse two types in one product.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
