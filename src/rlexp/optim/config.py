"""Settings of optimizers and learning-rate schedules; imports torch only to build."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlexp.config import Config, ConfigError, Node, NonNegative, Positive, Problem, build_at
from rlexp.config.spec import locate

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Decay], Field(min_length=2, max_length=2)]


class OptimConfig(Config):
    """Base of all optimizers.

    Attributes:
        lr: initial learning rate.
        critic_lr: initial learning rate of the critic's own parameters; None is ``lr``.
        schedule: ``cosine`` or ``linear`` to 0 at the end of the run, one step per batch; ``constant``;
            ``kl_adaptive``, adapted after each epoch by its KL (`rlexp.optim.schedules.KLAdaptive`); or a node
            whose target is a torch scheduler, called with the optimizer, one step per batch.
        elementwise: whether the update of a weight depends on that weight's own gradients alone, so that all weights
            can be passed as one vector.
    """

    elementwise: ClassVar[bool] = False

    lr: Positive
    critic_lr: Positive | None
    schedule: Literal["cosine", "linear", "constant", "kl_adaptive"] | Node

    @property
    def follows_kl(self) -> bool:
        """Whether the schedule goes by the KL of each update."""
        own = isinstance(self.schedule, Node) and self.schedule.target == "rlexp.optim.schedules.KLAdaptive"
        return self.schedule == "kl_adaptive" or own

    def target_problems(self) -> Iterator[Problem]:
        """The scheduler's ``step`` must need no argument."""
        yield from super().target_problems()
        if isinstance(self.schedule, Node) and not list(self.schedule.problems()):
            yield from _step_problems(locate(self.schedule.target), self.schedule.target)

    def build(
        self,
        weights: nn.Parameter,
        actor: list[nn.Parameter],
        critic: list[nn.Parameter],
        num_batches: int,
        *,
        kl: bool = True,
    ) -> tuple[Optimizer, LRScheduler]:
        """Optimizer and schedule over a run of ``num_batches`` batches.

        Args:
            weights: all trained parameters as one vector.
            actor: the actor's parameters, views of the beginning of the vector.
            critic: the parameters that the critic does not share with the actor, views of the rest.
            num_batches: number of steps of the schedule.
            kl: whether there is a KL for it to follow.

        Raises:
            ConfigError: a target refuses its arguments, ``critic_lr`` is set and the critic shares all parameters, or
                the schedule follows a KL that there is not.
        """
        from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR

        from rlexp.optim.schedules import KLAdaptive
        from rlexp.optim.weights import split

        if self.critic_lr is None:
            optimizer = self.build_optimizer([{"params": [weights] if self.elementwise else [*actor, *critic]}])
        elif not critic:
            message = "the critic has no parameters of its own: it shares all of them with the actor."
            raise ConfigError([Problem("optim.critic_lr", message, str(self.critic_lr))])
        else:
            if self.elementwise:
                sizes = [sum(parameter.numel() for parameter in part) for part in (actor, critic)]
                actor, critic = ([part] for part in split(weights, sizes))
            optimizer = self.build_optimizer([{"params": actor}, {"params": critic, "lr": self.critic_lr}])
        match self.schedule:
            case "cosine":
                return optimizer, CosineAnnealingLR(optimizer, T_max=num_batches, eta_min=0.0)
            case "linear":
                return optimizer, LinearLR(optimizer, 1.0, 0.0, total_iters=num_batches)
            case "constant":
                return optimizer, ConstantLR(optimizer, factor=1.0)
            case "kl_adaptive":
                return optimizer, KLAdaptive(optimizer)
            case Node():
                scheduler: LRScheduler = build_at("optim.schedule", partial(self.schedule.build, optimizer))
                if found := [p.under("optim.") for p in _step_problems(scheduler, self.schedule.target)]:
                    raise ConfigError(found)
                if isinstance(scheduler, KLAdaptive) and not kl:
                    message = "follows the KL of the policy's minibatches, and here are none."
                    raise ConfigError([Problem("optim.schedule", message, self.schedule.target)])
                return optimizer, scheduler

    def build_optimizer(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over groups of parameters, each with ``params`` and perhaps its own ``lr``."""
        raise NotImplementedError


class AdamBaseConfig(OptimConfig):
    """Settings of Adam and AdamW.

    Attributes:
        betas: decay of the two moment estimates.
        eps: added to the denominator.
        weight_decay: L2 penalty; for AdamW, each step multiplies the weights by 1 - lr * weight_decay.
    """

    elementwise = True

    betas: Betas
    eps: Positive
    weight_decay: NonNegative

    def build_optimizer(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """The optimizer that ``builds`` names, in its fused implementation."""
        build = partial(locate(self.builds[0]), parameters, lr=self.lr, betas=tuple(self.betas), fused=True)
        optimizer: Optimizer = build(eps=self.eps, weight_decay=self.weight_decay)
        return optimizer


class AdamConfig(AdamBaseConfig):
    """Adam (Kingma and Ba 2015); builds ``torch.optim.Adam``."""

    builds = ("torch.optim.Adam",)


class AdamWConfig(AdamBaseConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); builds ``torch.optim.AdamW``."""

    builds = ("torch.optim.AdamW",)


class RMSpropConfig(OptimConfig):
    """RMSprop (Tieleman and Hinton 2012); builds ``torch.optim.RMSprop``.

    Attributes:
        alpha: decay of the mean of squared gradients.
        eps: added to the denominator.
        momentum: decay of the velocity.
        centered: divide by the standard deviation instead of the root mean square.
        weight_decay: L2 penalty.
    """

    builds = ("torch.optim.RMSprop",)
    elementwise = True

    alpha: Decay
    eps: Positive
    momentum: Decay
    centered: bool
    weight_decay: NonNegative

    def build_optimizer(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """``torch.optim.RMSprop``."""
        from torch.optim import RMSprop

        return RMSprop(
            parameters, lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum, centered=self.centered,
            weight_decay=self.weight_decay,
        )  # fmt: skip


class SGDConfig(OptimConfig):
    """Stochastic gradient descent; builds ``torch.optim.SGD``.

    Attributes:
        momentum: decay of the velocity.
        nesterov: Nesterov momentum (Sutskever et al. 2013).
        weight_decay: L2 penalty.
    """

    builds = ("torch.optim.SGD",)
    elementwise = True

    momentum: Decay
    nesterov: bool
    weight_decay: NonNegative

    def problems(self) -> Iterator[Problem]:
        """Nesterov momentum needs momentum."""
        if self.nesterov and self.momentum == 0:
            yield Problem("nesterov", "needs momentum, e.g. optim.momentum=0.9.", "true")

    def build_optimizer(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """``torch.optim.SGD``, in its fused implementation."""
        from torch.optim import SGD

        return SGD(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
            fused=True,
        )  # fmt: skip


class AnyOptimizerConfig(OptimConfig):
    """Any optimizer that takes parameters and ``lr``.

    Attributes:
        optimizer: the optimizer; it is called with the parameters, ``lr`` and its own arguments.
    """

    optimizer: Node

    def build_optimizer(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """The optimizer that the config names."""
        optimizer: Optimizer = build_at("optim.optimizer", partial(self.optimizer.build, parameters, lr=self.lr))
        return optimizer


def _step_problems(scheduler: Callable[..., Any] | LRScheduler, target: str) -> Iterator[Problem]:
    """What keeps a scheduler, its class or a function that makes one from being stepped once per batch."""
    step = getattr(scheduler, "step", None)
    if step is None:
        return  # a function: what it returns is looked at once it is built
    parameters = list(inspect.signature(step).parameters.values())[1 if inspect.isclass(scheduler) else 0 :]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        message = (
            f"its step needs an argument ({', '.join(needed)}), and schedules are stepped once per batch without any. "
            "optim.schedule=kl_adaptive follows the training; any other scheduler follows the batches."
        )
        yield Problem("schedule._target_", message, target)
