"""Optimizers: an `OptimSpec` describes optimizer and schedule, `build` makes torch's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlexp.config import Node, NonNegative, Positive, Spec, build_at

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class OptimSpec(Spec):
    """Base of all optimizers.

    Attributes:
        lr: learning rate of the first batch.
        schedule: how it falls, a step a batch: ``cosine`` or ``linear`` to 0 at the end of the run, ``constant``, or a
            node whose target is a torch scheduler, called with the optimizer.
        elementwise: what it does to a weight depends on that weight's own gradients alone, so that all weights may be
            given as one vector.
    """

    elementwise: ClassVar[bool] = False

    lr: Positive
    schedule: Literal["cosine", "linear", "constant"] | Node

    def build(self, parameters: list[nn.Parameter], num_batches: int) -> tuple[Optimizer, LRScheduler]:
        """Optimizer and schedule over a run of ``num_batches`` batches.

        Args:
            parameters: everything that is trained.
            num_batches: steps of the schedule.

        Raises:
            ConfigError: a target refuses its arguments.
        """
        from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR

        optimizer = self.build_optimizer(parameters)
        match self.schedule:
            case "cosine":
                return optimizer, CosineAnnealingLR(optimizer, T_max=num_batches, eta_min=0.0)
            case "linear":
                return optimizer, LinearLR(optimizer, 1.0, 0.0, total_iters=num_batches)
            case "constant":
                return optimizer, ConstantLR(optimizer, factor=1.0)
            case Node():
                return optimizer, build_at("optim.schedule", partial(self.schedule.build, optimizer))

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer alone."""
        raise NotImplementedError


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


class Adam(OptimSpec):
    """Adam (Kingma and Ba 2015); builds ``torch.optim.Adam``.

    Attributes:
        betas: decay of the two moment estimates.
        eps: added to the denominator.
        weight_decay: L2 penalty.
    """

    builds = ("torch.optim.Adam",)
    elementwise = True

    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Adam, fused where torch can."""
        from torch.optim import Adam

        beta1, beta2 = self.betas
        return Adam(
            parameters, lr=self.lr, betas=(beta1, beta2), eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


class AnyOptimizer(OptimSpec):
    """Any optimizer that takes parameters and ``lr``.

    Attributes:
        optimizer: the optimizer; it is called with the parameters and ``lr`` beside its own arguments.
    """

    optimizer: Node

    def build_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer that the config names."""
        optimizer: Optimizer = build_at("optim.optimizer", partial(self.optimizer.build, parameters, lr=self.lr))
        return optimizer
