"""Distillation: the distance of a policy from what a teacher would do in the same states."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import mse_loss
from torchrl.objectives import PPOLoss

from rlexp.losses.module import ratio_diagnostics

TEACHER = "teacher_"
"""What the names of a teacher's action and of its distribution's parameters begin with in a batch."""


class DistillLoss(PPOLoss):
    r"""The distance of a student's policy $\pi$ from a teacher's $\pi^*$, in the states that the student came to.

    ``kl``: $\mathbb{E}[\mathrm{KL}(\pi^*, \pi)]$ (Rusu et al. 2016, section 3, without a temperature); of categorical
    distributions the cross-entropy to the teacher's probabilities, less the teacher's entropy, whose gradient is 0.
    ``l2``: the mean squared difference of the deterministic actions, over steps and the numbers of an action.

    Args:
        args, kwargs: as for torchrl's ``PPOLoss``.
        distance: which of the two.
    """

    def __init__(self, *args: Any, distance: Literal["kl", "l2"], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distance = distance

    @property
    def teacher_keys(self) -> list[str]:
        """The entries of a batch that say what the teacher would do."""
        if self.distance == "l2":
            return [f"{TEACHER}action"]
        return [TEACHER + str(key) for key in self.actor_network.dist_params_keys]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses and diagnostics of a minibatch ``[n]``, or of sequences ``[n, length]``, with `teacher_keys`."""
        steps = tensordict.clone(False)
        student = self.actor_network.get_dist(steps)
        if self.distance == "l2":
            objective = mse_loss(student.deterministic_sample, steps[f"{TEACHER}action"])
        else:
            parameters = {key.removeprefix(TEACHER): steps[key] for key in self.teacher_keys}
            teacher = self.actor_network.build_dist_from_params(TensorDict(parameters, steps.batch_size))
            objective = kl_divergence(teacher, student).mean()
        with torch.no_grad():
            log_ratio: Tensor = student.log_prob(steps["action"]) - steps["action_log_prob"]
        out = TensorDict({"loss_objective": objective, **ratio_diagnostics(log_ratio)})
        if self._has_critic:
            loss_critic, _, _ = self.loss_critic(steps)
            out["loss_critic"] = loss_critic.mean()
        return out
