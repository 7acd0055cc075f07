"""A callback that has a state."""

from __future__ import annotations

from typing import Any

import torch

from rlexp.callbacks import Callback, Training


class Odometer(Callback):
    """Adds up how far each update moved the weights."""

    def __init__(self) -> None:
        self.way = 0.0
        self.last: torch.Tensor | None = None

    def after_update(self, trainer: Training, metrics: dict[str, float]) -> None:
        weights = trainer.learner.weights.detach().clone()
        if self.last is not None:
            self.way += float((weights - self.last).norm())
        self.last = weights
        metrics["optim/way"] = self.way

    def state(self) -> dict[str, Any]:
        return {"way": self.way, "last": self.last}

    def load_state(self, state: dict[str, Any]) -> None:
        self.way, self.last = state["way"], state["last"]
