"""What the losses share: torchrl's numbers, without its cost per call.

At minibatches of some hundred steps and networks of some thousand weights, neither products nor sums take the time but
the calls around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import LossModule

from rlexp.losses.terms import Terms, policy_terms, value_function


class LeanLoss(LossModule):
    """Base, beside a class of torchrl's, of that class's loss computed on plain tensors.

    What it needs of the networks comes from `rlexp.losses.terms`. The diagnostics that torchrl computes with every
    minibatch are computed once, by `means`. A subclass's `objective` has the formula.

    Args:
        actor, critic: the networks, which stay plain modules.
        kl: the objective needs the divergence of the policy from the one that acted.
        normalize_advantage: to mean 0 and standard deviation 1 over each minibatch.
        options: torchrl's own.
    """

    tells_kl = True

    def __init__(
        self,
        actor: ProbabilisticActor,
        critic: ValueOperator,
        *,
        kl: bool = False,
        normalize_advantage: bool = False,
        **options: Any,
    ) -> None:
        # Functional copies of the networks would double the time of a step.
        super().__init__(actor, critic, functional=False, **options)
        self.normalize_advantage = normalize_advantage
        self._policy = policy_terms(actor, kl=kl)
        self._value_of = value_function(critic)

    @property
    def step_keys(self) -> list[str]:
        """The entries of a prepared batch that `losses` reads."""
        keys = [*self._policy.step_keys, *self.critic_network.in_keys, "advantage", "value_target"]
        if self.clip_value is not None:
            keys.append("state_value")
        return list(dict.fromkeys(keys))

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """The scalars that weigh and bound its parts; the live tensors."""
        return dict(self.named_buffers(recurse=False))

    @torch.no_grad()
    def prepare(self, batch: TensorDictBase) -> None:
        """Write what `losses` needs of each step and the update does not change, once for a batch."""
        self._policy.prepare(batch)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a batch as torchrl returns them, diagnostics included."""
        prepared = tensordict.copy()
        self.prepare(prepared)
        losses = self.losses({key: prepared[key] for key in self.step_keys})
        diagnostics = self.diagnostics(losses.pop("log_weight")[None])
        return TensorDict({**losses, **diagnostics})

    def losses(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a minibatch.

        Args:
            minibatch: the entries `step_keys` of a prepared batch, ``[n, ...]``.

        Returns:
            Scalars ``loss_objective``, ``loss_critic`` and, with an entropy bonus, ``loss_entropy``, to be summed;
            besides them, detached, the log of the importance ratios, ``log_weight`` ``[n]``, and scalars for the log.
        """
        advantage = self.normalized(minibatch["advantage"][..., 0])
        terms = self._policy(minibatch, entropy=self.entropy_bonus)
        losses = self.objective(terms, advantage, minibatch) | self._critic(minibatch)
        if terms.entropy is not None:
            losses |= {"loss_entropy": -self.entropy_coeff * terms.entropy, "entropy": terms.entropy.detach()}
        return losses

    def normalized(self, advantage: Tensor) -> Tensor:
        """The advantage ``[n]`` as the objective sees it."""
        if not self.normalize_advantage:
            return advantage
        centred = advantage - advantage.mean()
        return centred / centred.square().sum().div(len(centred) - 1).sqrt().clamp_min(1e-4)

    def objective(self, terms: Terms, advantage: Tensor, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss_objective`` and ``log_weight``, from the advantage ``[n]``."""
        raise NotImplementedError

    def _critic(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        value, target = self._value_of(minibatch), minibatch["value_target"]
        distance = _DISTANCES[self.loss_critic_type]
        if self.clip_value is None:
            return {"loss_critic": self.critic_coeff * distance(value, target)}
        change = value - minibatch["state_value"]
        clipped = change.clamp(-self.clip_value, self.clip_value)
        near = minibatch["state_value"] + clipped
        worse = torch.maximum(distance(value, target, reduction="none"), distance(near, target, reduction="none"))
        fraction = (change.detach() != clipped.detach()).to(value.dtype).mean()
        return {"loss_critic": self.critic_coeff * worse.mean(), "value_clip_fraction": fraction}

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over minibatches, the diagnostics of the ratios among them."""
        plain = {name: record.mean() for name, record in records.items() if name != "log_weight"}
        return plain | self.diagnostics(records["log_weight"])

    def divergence(self, records: dict[str, Tensor]) -> Tensor:
        """KL(old, new) from the actions taken: mean of r - 1 - log r with the ratio r (Schulman 2020, k3)."""
        log_weight = records["log_weight"]
        return (log_weight.expm1() - log_weight).mean()

    def adapt(self, records: dict[str, Tensor]) -> None:
        """Nothing follows from how far an update came."""

    @torch.no_grad()
    def diagnostics(self, log_weights: Tensor) -> dict[str, Tensor]:
        """Means over minibatches of what torchrl logs about the importance ratios.

        Args:
            log_weights: ``[minibatches, n]``.
        """
        ess = (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp() / log_weights.shape[-1]
        return {"kl_approx": -log_weights.mean(), "ESS": ess.mean()}


_DISTANCES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
