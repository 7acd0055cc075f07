"""The critic's own passes over a batch, for update rules that train it apart from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from rlexp.config import ConfigError, Problem
from rlexp.distributed import ALONE, POSITION, Group
from rlexp.experiment import ExperimentConfig
from rlexp.kernels.select import Kernels
from rlexp.optim.schedules import load_schedule
from rlexp.policies import ActorCritic
from rlexp.training.learners.batches import clip_grad_norm, minibatches, stacked

_DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


class CriticFit:
    """Fits a critic, which shares nothing with the actor, to the value targets of a batch.

    Args:
        config: the checked config; ``critic_num_epochs`` and ``critic_minibatch_size`` take precedence.
        networks: actor and critic.
        weights: all that is trained, as one vector, the critic's parameters at its end.
        distance: ``l1``, ``l2`` or ``smooth_l1``, between value and target.
        group: the learners, each of whom has a share of a batch.

    Raises:
        ConfigError: actor and critic share parameters, or the optimizer cannot be built.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        networks: ActorCritic,
        weights: nn.Parameter,
        distance: str,
        group: Group = ALONE,
    ) -> None:
        self._group = group
        actor, critic = networks.split_parameters()
        if not critic or set(actor) & set(networks.critic.parameters()):
            message = "must be false where the critic has passes of its own: they would change the policy."
            raise ConfigError([Problem("policy.shared", message, "true")])
        self._critic, self._distance, self._max_grad_norm = networks.critic, _DISTANCES[distance], config.max_grad_norm
        self._num_epochs = config.critic_num_epochs or config.num_epochs
        self._size = config.critic_minibatch_size or config.minibatch_size
        self._gradient = Kernels(config.use_kernels).critic_gradient(networks.critic, distance) or self._by_autograd
        self._weights = part(weights, -sum(parameter.numel() for parameter in critic), None)
        optim = config.optim.model_copy(update={"lr": config.optim.critic_lr or config.optim.lr, "critic_lr": None})
        self.optimizer, self.scheduler = optim.build(self._weights, critic, [], config.num_batches, kl=False)

    @property
    def lr(self) -> float:
        """The learning rate of the next batch."""
        return float(self.scheduler.get_last_lr()[0])

    def fit(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Pass over a batch ``[num_envs, steps]`` that holds ``value_target``.

        Returns:
            ``loss_critic``, and ``grad_norm`` before clipping: means over the minibatches.
        """
        keys = list(dict.fromkeys([*self._critic.in_keys, "value_target"]))
        steps = (m for _ in range(self._num_epochs) for m in minibatches(batch, keys, self._size, group=self._group))
        records = stacked([self.step(minibatch) for minibatch in steps])
        self.scheduler.step()
        return {name: record.mean() for name, record in records.items()}

    def step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the optimizer on the critic's loss."""
        assert self._weights.grad is not None
        record = {"loss_critic": self._gradient(minibatch)}
        record = self._group.combine(self._weights.grad, record, minibatch.get(POSITION), self._size)
        norm = clip_grad_norm(self._weights, self._max_grad_norm)
        self.optimizer.step()
        return record | {"grad_norm": norm}

    def _by_autograd(self, minibatch: Mapping[str, Tensor]) -> Tensor:
        """Write the gradient of the critic's loss, and return the loss."""
        assert self._weights.grad is not None
        self._weights.grad.zero_()
        value = self._critic(*(minibatch[key] for key in self._critic.in_keys))
        loss = self._distance(value, minibatch["value_target"])
        loss.backward()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and schedule."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, perhaps over more or fewer batches than it was taken in."""
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])


def part(weights: nn.Parameter, start: int | None, end: int | None) -> nn.Parameter:
    """A stretch of a vector of weights and of its gradient, as a parameter that shares both."""
    stretch = torch.nn.Parameter(weights.detach()[start:end])
    assert weights.grad is not None
    stretch.grad = weights.grad[start:end]
    return stretch
