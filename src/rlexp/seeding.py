"""Every random generator that training draws from: seeded together, saved together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state(*, devices: bool = True) -> dict[str, Any]:
    """The states of all generators, as plain values, arrays and tensors; without ``devices``, those of the host."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if devices and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_rng_state(state: dict[str, Any]) -> None:
    """Put all generators where `rng_state` found them; those of devices that are not here are left out."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)


@contextmanager
def unmoved_generators(*, devices: bool = True) -> Iterator[None]:
    """Restore all generators afterwards, whatever is drawn inside; without ``devices``, those of the host."""
    state = rng_state(devices=devices)
    try:
        yield
    finally:
        load_rng_state(state)
