"""Which kernels a run takes in the place of torchrl's parts; the log says which, and why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.module import AutogradGradient, Gradient, Loss, MinibatchLoss
from rlexp.policies import ActorCritic

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torch import nn
    from torchrl.collectors import BaseCollector
    from torchrl.envs import TransformedEnv
    from torchrl.modules import ValueOperator

    from rlexp.kernels.critic import WrittenOutCriticGradient
    from rlexp.kernels.cuda_graph import GraphedStep
    from rlexp.kernels.evaluation import Steps
    from rlexp.kernels.fisher import WrittenOutFisher
    from rlexp.losses.advantages import AdvantageEstimator

log = logging.getLogger(__name__)

T = TypeVar("T")


class Kernels:
    """Puts a kernel in the place of each part that has one.

    Args:
        enabled: False leaves every part as torchrl built it.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def collector(
        self, env: TransformedEnv, actor: TensorDictModuleBase, steps_per_batch: int, device: torch.device
    ) -> BaseCollector | None:
        """The array rollout in place of ``torchrl.collectors.Collector``; None where that must collect itself."""
        from rlexp.kernels.rollout import RolloutCollector

        return self._or_none("collector", lambda: RolloutCollector(env, actor, steps_per_batch, device))

    def evaluation(self, env: TransformedEnv, actor: TensorDictModuleBase) -> Steps | None:
        """Array steps in place of torchrl's loop, for deterministic episodes; None where that must run them itself."""
        from rlexp.kernels.evaluation import array_steps

        if not self.enabled:
            return None
        try:
            return array_steps(env, actor)
        except UnsupportedError:
            return None

    def advantage(self, reference: AdvantageEstimator) -> nn.Module:
        """The parallel scan in place of torchrl's estimator."""
        from rlexp.kernels.scan import fast_advantage

        return self._or_none("advantage", lambda: fast_advantage(reference)) or reference

    def loss(self, reference: Loss, networks: ActorCritic) -> MinibatchLoss:
        """The loss on plain tensors in place of torchrl's module."""
        from rlexp.kernels.losses import fast_loss

        return self._or_none("loss", lambda: fast_loss(reference, networks)) or reference

    def gradient(self, loss: MinibatchLoss, networks: ActorCritic, compiled: Callable[[], bool]) -> Gradient:
        """The written-out gradient in place of autograd's, which may be compiled.

        Args:
            loss: the loss, a kernel or not.
            networks: what it trains.
            compiled: whether to compile the loss; not asked where the gradient is written out, which is faster still,
                nor for recurrent networks, whose sequences have new lengths in each minibatch.
        """
        from rlexp.kernels.gradient import WrittenOutGradient

        written_out = self._or_none("gradient", lambda: WrittenOutGradient.of(loss, networks))
        if written_out is not None:
            return written_out
        return AutogradGradient(loss, networks.parameters(), compiled=networks.sequence_length == 1 and compiled())

    def critic_gradient(self, critic: ValueOperator, distance: str) -> WrittenOutCriticGradient | None:
        """The written-out gradient in place of autograd's, for a critic that is trained apart."""
        from rlexp.kernels.critic import WrittenOutCriticGradient

        return self._or_none("critic's gradient", lambda: WrittenOutCriticGradient(critic, distance))

    def fisher(self, networks: ActorCritic, parameters: Sequence[nn.Parameter]) -> WrittenOutFisher | None:
        """Written-out products with the Fisher matrix in place of a KL that is differentiated twice."""
        from rlexp.kernels.fisher import WrittenOutFisher

        return self._or_none("Fisher matrix", lambda: WrittenOutFisher(networks, parameters))

    def cuda_graph(
        self,
        step: Gradient,
        loss: MinibatchLoss,
        networks: ActorCritic,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> GraphedStep:
        """A training step as one CUDA graph.

        Raises:
            UnsupportedError: it cannot be one.
        """
        from rlexp.kernels.cuda_graph import GraphedStep
        from rlexp.kernels.losses import FastLoss

        if not isinstance(loss, FastLoss):
            raise UnsupportedError("needs kernels=auto and a shipped loss: another may wait for its results")
        if networks.sequence_length > 1:
            raise UnsupportedError("needs a feed-forward policy: sequences give each minibatch another shape")
        capturable = all("capturable" in group for group in optimizer.param_groups)
        if not (isinstance(optimizer, torch.optim.SGD) or capturable):
            name = type(optimizer).__name__
            raise UnsupportedError(f"needs an optimizer with torch's option capturable, and {name} has none")
        if device.type != "cuda":
            raise UnsupportedError(f"needs a GPU, and the device is {device}")
        return GraphedStep(step)

    def _or_none(self, part: str, kernel: Callable[[], T]) -> T | None:
        if not self.enabled:
            return None
        try:
            found = kernel()
        except UnsupportedError as error:
            log.info("kernels=auto: no kernel for the %s: %s.", part, error)
            return None
        log.info("kernels=auto: %s by %s", part, type(found).__name__)
        return found
