"""Learning-rate schedules: adaptation by the KL divergence, and loading a schedule from a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class KLAdaptive(LRScheduler):
    """Adapts the learning rate to keep each epoch's KL between half and twice a target (RSL-RL, Rudin et al. 2022).

    The rates of all parameter groups are multiplied by the same factor; the state is in the optimizer's groups.

    Args:
        optimizer: the optimizer whose rates are adapted.
        desired_kl: target KL from the policy that acted to the current one, in nats.
        factor: factor of a change.
        min_lr: rates are not lowered below it.
        max_lr: rates are not raised above it.
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
        """The current rates: they do not change at the end of a batch."""
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
    """Load a schedule; over another horizon, continue as if it had had that horizon from the start.

    Args:
        scheduler: a new schedule over this run's batches, whose optimizer is already loaded.
        saved: the ``state_dict`` of a schedule of the same kind, perhaps over more or fewer batches.
    """
    horizon = {key: value for key, value in scheduler.state_dict().items() if key in ("T_max", "total_iters")}
    scheduler.load_state_dict(saved | horizon)
    if any(saved[key] != value for key, value in horizon.items()):
        rates = scheduler._get_closed_form_lr()  # type: ignore[attr-defined] # torch's own, with no public name
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
