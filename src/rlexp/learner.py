"""The learner: what improves the policy on one batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import SGD

from rlexp.config import ConfigError, Problem
from rlexp.experiment import Experiment
from rlexp.hardware import GraphedStep, Step, use_compiler
from rlexp.losses.gradients import gradient_of
from rlexp.losses.lean import LeanLoss
from rlexp.optim.schedules import KLAdaptive
from rlexp.optim.weights import flatten
from rlexp.policies import ActorCritic

log = logging.getLogger(__name__)

_LOSS_METRICS = {
    "loss_objective": "loss/objective",
    "loss_critic": "loss/critic",
    "entropy": "loss/entropy",
    "kl_approx": "loss/kl_approx",
    "clip_fraction": "loss/clip_fraction",
    "ESS": "loss/ess",
    "value_clip_fraction": "loss/value_clip_fraction",
    "kl": "loss/kl",
    "beta": "loss/beta",
    "grad_norm": "optim/grad_norm",
}


class Learner:
    """Trains networks in place, a batch at a time, as an experiment's loss and optimizer say.

    Args:
        experiment: the checked config.
        networks: what it trains; their parameters become views of one vector, ``weights``.
        device: where the networks are and the batches come to.

    Attributes:
        objective: loss, advantage and reward normalisation.
        weights: all that is trained, ``[weights]``, and its gradient.
        gradient: writes the gradient of a minibatch's loss.
        optimizer: steps along it.
        scheduler: of the learning rate; `update` leaves it to the caller to step it, once a batch.
        graph: what runs `step` as a CUDA graph; None runs it as it is.

    Raises:
        ConfigError: loss, optimizer or schedule cannot be built with these settings, or do not go together.
    """

    def __init__(self, experiment: Experiment, networks: ActorCritic, device: torch.device) -> None:
        self.experiment = experiment
        self.networks = networks
        self.objective = experiment.loss.build(networks, experiment.env.num_envs, device)
        actor, critic = networks.split_parameters()
        self.weights = flatten([*actor, *critic])
        self.gradient = gradient_of(self.objective.loss, networks, lambda: use_compiler(experiment, device))
        self.optimizer, self.scheduler = experiment.optim.build(self.weights, actor, critic, experiment.num_batches)
        self._watches_kl = experiment.target_kl is not None or isinstance(self.scheduler, KLAdaptive)
        self._check_loss()
        self.graph = self._graphed(device) if experiment.cuda_graph else None

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """Improve the policy on one batch: the inner loop of PPO (Schulman et al. 2017, algorithm 1).

        Args:
            batch: transitions from the policy that acted. Its rewards are normalised in place; advantages and what
                else the loss reads are written into it.
            progress: the share of the run that is over, from 0 to 1, by which coefficients are annealed.

        Shapes:
            batch ``[num_envs, steps]``.

        Returns:
            Metrics of the update, means over its minibatches; whether they are finite is not checked.
        """
        objective, loss = self.objective, self.objective.loss
        if objective.reward_norm is not None:
            reward = objective.reward_norm(batch["next", "reward"], batch["next", "done"])
            batch.set(("next", "reward"), reward)
        objective.anneal(progress)
        loss.prepare(batch)
        objective.advantage(batch)
        explained = explained_variance(batch["state_value"], batch["value_target"])
        step = self._this_updates_step()
        records: list[dict[str, Tensor]] = []
        for epoch in range(self.experiment.num_epochs):
            if epoch > 0 and self.experiment.recompute_advantage:
                objective.advantage(batch)
            steps = [step(minibatch) for minibatch in self.minibatches(batch)]
            records += steps
            if self._far(steps):
                break
        means, last = loss.means(stacked(records)), stacked(steps)
        if loss.tells_kl:
            means["kl"] = loss.divergence(last)
        loss.adapt(last)
        # Without a bonus the loss has no use for the entropy: the batch's own actions estimate it.
        means.setdefault("entropy", -batch["action_log_prob"].mean())
        metrics = {metric: means[key].item() for key, metric in _LOSS_METRICS.items() if key in means}
        return metrics | {"loss/explained_variance": explained, "optim/epochs": epoch + 1}

    def minibatches(self, batch: TensorDictBase) -> Iterator[dict[str, Tensor]]:
        """What the loss reads of the batch's steps, in a new random order, ``minibatch_size`` at a time.

        Each step comes at most once. Those that do not fill a minibatch are left out, different ones each time. For
        policies with a memory it is sequences that are in random order, the steps of each one after another.

        Shapes:
            batch ``[num_envs, steps]``; the entries of a minibatch ``[minibatch_size, ...]``.
        """
        size, length = self.experiment.minibatch_size, self.networks.sequence_length
        order = torch.randperm(batch.numel() // length, device=batch.device)[: batch.numel() // size * size // length]
        if length > 1:
            order = (order[:, None] * length + torch.arange(length, device=batch.device)).flatten()
        keys = self.objective.loss.step_keys
        columns = (batch[key].flatten(0, 1)[order].split(size) for key in keys)
        for entries in zip(*columns, strict=True):
            yield dict(zip(keys, entries, strict=True))

    def step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the optimizer; the losses of the minibatch and the norm of its gradient, detached."""
        record = self.gradient(minibatch)
        record["grad_norm"] = clip_grad_norm(self.weights, self.experiment.max_grad_norm)
        self.optimizer.step()
        return record

    def _this_updates_step(self) -> Step:
        """`step`, as a CUDA graph where there is one: with this update's learning rate and coefficients."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # a resumed optimizer has what the run had before
                group["capturable"] = self.graph is not None
        return self.step if self.graph is None else self.graph.renewed()

    def _far(self, steps: list[dict[str, Tensor]]) -> bool:
        """Whether an epoch came too far from the policy that acted; a learning rate that follows the KL does so."""
        if not self._watches_kl:
            return False
        kl = self.objective.loss.divergence(stacked(steps)).item()
        if isinstance(self.scheduler, KLAdaptive):
            self.scheduler.adapt(kl)
            if self.graph is not None:
                self.graph.renewed()
        return self.experiment.target_kl is not None and kl > self.experiment.target_kl

    def _graphed(self, device: torch.device) -> GraphedStep:
        """What runs `step` as a CUDA graph, if it can be one."""
        groups, name = self.optimizer.param_groups, type(self.optimizer).__name__
        if not isinstance(self.objective.loss, LeanLoss):
            reason = "needs a shipped loss: another may wait for its results"
        elif self.networks.sequence_length > 1:
            reason = "needs a policy without a memory, whose episodes make each minibatch another shape"
        elif not (isinstance(self.optimizer, SGD) or all("capturable" in group for group in groups)):
            reason = f"needs an optimizer with torch's option capturable, and {name} has none"
        elif device.type != "cuda":
            reason = f"needs a GPU, and device={self.experiment.device} is {device}"
        else:
            return GraphedStep(self.step)
        raise ConfigError([Problem("cuda_graph", f"{reason}.", "true")])

    def _check_loss(self) -> None:
        """What the loop asks of the loss."""
        spec = self.experiment
        if self._watches_kl and not self.objective.loss.tells_kl:
            key, value = ("optim.schedule", "kl_adaptive") if spec.target_kl is None else ("target_kl", spec.target_kl)
            message = "needs a loss that measures the KL: a shipped one, or one of torchrl's variants of PPO."
            raise ConfigError([Problem(key, message, str(value))])
        if spec.loss.on_policy and spec.num_epochs > 1:
            log.warning("num_epochs=%d: this loss has no importance ratio, so that its gradient is right for the "
                        "policy that acted alone. num_epochs=1 uses each step once.", spec.num_epochs)  # fmt: skip


def stacked(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each entry of the records as one tensor, ``[records, ...]``."""
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


def clip_grad_norm(weights: nn.Parameter, max_norm: float) -> Tensor:
    """Scale the gradient down to norm ``max_norm`` where it is longer, and return the norm that it had.

    ``torch.nn.utils.clip_grad_norm_`` for one tensor, at a third of its cost.
    """
    grad = cast("Tensor", weights.grad)
    norm: Tensor = torch.linalg.vector_norm(grad)
    grad.mul_((max_norm / (norm + 1e-6)).clamp_max(1))
    return norm


def explained_variance(value: Tensor, target: Tensor) -> float:
    """Share of the targets' variance that the critic explains: 1 is all of it, 0 none, negative worse than none."""
    variance = target.var()
    return float(1 - (target - value).var() / variance) if variance > 0 else 0.0
