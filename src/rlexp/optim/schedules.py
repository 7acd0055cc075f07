"""Schedules of the learning rate: one that follows the policy's divergence, and any one's way out of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class KLAdaptive(LRScheduler):
    """A rate that keeps each epoch's KL between half and twice a target, as in RSL-RL (Rudin et al. 2022).

    Each parameter group's rate is multiplied alike, and all of the state is in the optimizer's groups.

    Args:
        optimizer: whose rates follow.
        desired_kl: KL from the policy that acted to the one that is trained that an epoch is to have, in nats.
        factor: of a change.
        min_lr: a rate is not lowered below it.
        max_lr: a rate is not raised above it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        desired_kl: float = 0.01,
        factor: float = 1.5,
        min_lr: float = 1e-5,
        max_lr: float = 1e-2,
    ) -> None:
        self.desired_kl, self.factor, self.min_lr, self.max_lr = desired_kl, factor, min_lr, max_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates as they are: a batch's end changes nothing."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def adapt(self, kl: float) -> None:
        """Lower the rates after a KL above twice the target, raise them after one below half of it."""
        for group in self.optimizer.param_groups:
            rate = group["lr"]
            if kl > 2 * self.desired_kl:
                group["lr"] = min(rate, max(rate / self.factor, self.min_lr))
            elif 0 < kl < self.desired_kl / 2:
                group["lr"] = max(rate, min(rate * self.factor, self.max_lr))


def load_schedule(scheduler: LRScheduler, saved: dict[str, Any]) -> None:
    """Put a schedule where a saved one was; over another horizon, where it would be had it always been that one.

    Args:
        scheduler: a fresh schedule over this run's batches; its optimizer has its saved state already.
        saved: the ``state_dict`` of a schedule of the same kind, perhaps over more or fewer batches.
    """
    horizon = {key: value for key, value in scheduler.state_dict().items() if key in ("T_max", "total_iters")}
    scheduler.load_state_dict(saved | horizon)
    if any(saved[key] != value for key, value in horizon.items()):
        rates = scheduler._get_closed_form_lr()  # type: ignore[attr-defined] # torch's own, with no public name
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
