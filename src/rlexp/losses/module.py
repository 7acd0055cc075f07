"""A torchrl loss module as the learner calls it: one minibatch in, scalars to minimise and to log out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from rlexp.policies import ActorCritic

Minibatch = dict[str, Tensor]
Gradient = Callable[[Minibatch], dict[str, Tensor]]


class MinibatchLoss(Protocol):
    """What a learner asks of a loss: of `Loss`, or of a kernel that stands in for it.

    A record is what `losses` returned for one minibatch; ``records`` are stacked over minibatches.
    """

    @property
    def keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""

    def prepare(self, batch: TensorDictBase) -> None:
        """Write into a batch ``[num_envs, steps]`` what `losses` needs and the update does not change."""

    def losses(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """Scalars ``loss_*``, whose sum is minimised, and diagnostics, from entries ``[n, ...]``."""

    def metrics(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars to log, by their names in ``metrics.jsonl``, from the records of an update."""

    def kl(self, records: dict[str, Tensor]) -> Tensor:
        """KL from the policy that acted to the current one, in nats, from the records of one epoch."""

    def end_update(self, records: dict[str, Tensor]) -> None:
        """Adapt coefficients after an update, from the records of its last epoch."""


class Loss(nn.Module):
    """A ``torchrl.objectives.LossModule`` over an actor, a critic and an advantage that is in the batch.

    Args:
        module: the loss. Where it has a method ``end_update(kl)``, that is called after each update.
        networks: the actor and critic that it trains.
        normalize_advantage: standardise the advantage over each minibatch, for a module that cannot do so itself.
    """

    def __init__(self, module: LossModule, networks: ActorCritic, *, normalize_advantage: bool = False) -> None:
        super().__init__()
        self.module = module
        self.normalize_advantage = normalize_advantage
        self._actor = networks.actor
        self._sequence_length = networks.sequence_length
        names = module.tensor_keys
        keys = [*networks.actor.in_keys, *networks.critic.in_keys, *networks.actor.out_keys]
        keys += [names.action, names.sample_log_prob, names.advantage, names.value_target, names.value]
        # A tuple names what the network passes to its next step.
        self.keys: list[str] = list(dict.fromkeys(key for key in keys if isinstance(key, str)))

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """The scalars that weigh and bound the parts of the loss: the live tensors, written to by annealing."""
        return dict(self.module.named_buffers(recurse=False))

    def prepare(self, batch: TensorDictBase) -> None:
        """Nothing: torchrl's modules compute all they need from each minibatch."""

    def losses(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """The scalars that the module returns for a minibatch ``[n, ...]``, and diagnostics that it does not return.

        From the importance ratios r of the n actions: ``kl``, the mean of r - 1 - log r (Schulman 2020, "Approximating
        KL Divergence", k3), ``kl_approx``, the mean of -log r, and ``ESS``, the effective sample size over n.
        """
        (size,) = {len(value) for value in minibatch.values()}
        steps = TensorDict(minibatch, batch_size=[size])
        if self.normalize_advantage:
            steps["advantage"] = standardized(steps["advantage"])
        if self._sequence_length > 1:
            steps = steps.unflatten(0, (size // self._sequence_length, self._sequence_length))
        found = {name: value.mean() for name, value in self.module(steps).items() if isinstance(value, Tensor)}
        if self._sequence_length > 1:
            found.pop("ESS", None)  # torchrl's is over sequences at each of their positions, not over the minibatch
        if not found.keys() >= {"kl", "kl_approx", "ESS"}:
            found = self._ratio_diagnostics(steps) | found
        return found

    @torch.no_grad()
    def _ratio_diagnostics(self, steps: TensorDict) -> dict[str, Tensor]:
        names = self.module.tensor_keys
        log_prob = self._actor.get_dist(steps).log_prob(steps[names.action])
        return ratio_diagnostics(log_prob - steps[names.sample_log_prob])

    def metrics(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over minibatches."""
        return named({name: record.mean() for name, record in records.items()})

    def kl(self, records: dict[str, Tensor]) -> Tensor:
        """Mean over the minibatches of an epoch."""
        return records["kl"].mean()

    def end_update(self, records: dict[str, Tensor]) -> None:
        """Hand the last epoch's KL to a module that adapts to it."""
        adapt: Callable[[Tensor], None] | None = getattr(self.module, "end_update", None)
        if adapt is not None:
            adapt(self.kl(records))


def ratio_diagnostics(log_ratio: Tensor) -> dict[str, Tensor]:
    """``kl``, ``kl_approx`` and ``ESS`` of `Loss.losses`, from the logarithms of the ratios ``[...]``."""
    log_ratio = log_ratio.flatten()
    ess = (2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp() / len(log_ratio)
    return {"kl": (log_ratio.expm1() - log_ratio).mean(), "kl_approx": -log_ratio.mean(), "ESS": ess}


class AutogradGradient:
    """The gradient of a loss by autograd.

    Args:
        loss: the loss.
        parameters: what it trains.
        compiled: compile the loss with ``torch.compile``, which takes half a minute at the first minibatch.
    """

    def __init__(self, loss: MinibatchLoss, parameters: Sequence[nn.Parameter], *, compiled: bool = False) -> None:
        self._losses: Gradient = torch.compile(loss.losses, dynamic=False) if compiled else loss.losses
        self._parameters = parameters

    def __call__(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """Write the gradient into each parameter's ``grad``; return the losses and diagnostics, detached."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        losses = self._losses(minibatch)
        reduce(torch.add, (value for name, value in losses.items() if name.startswith("loss_"))).backward()
        return {name: value.detach() for name, value in losses.items()}


def named(values: dict[str, Any]) -> dict[str, Any]:
    """The same values by metric name: ``loss_objective`` is ``loss/objective``, ``ESS`` is ``loss/ess``.

    ``loss_entropy``, the weighted bonus, is left out where there is an ``entropy``.
    """
    plain: Iterable[tuple[str, Any]] = values.items()
    return {
        f"loss/{name.removeprefix('loss_').lower()}": value
        for name, value in plain
        if not (name == "loss_entropy" and "entropy" in values)
    }


def standardized(advantage: Tensor) -> Tensor:
    """Advantages ``[n, 1]`` with mean 0 and standard deviation 1; a deviation below 1e-4 counts as 1e-4."""
    centred = advantage - advantage.mean()
    return centred / advantage.std().clamp_min(1e-4)
