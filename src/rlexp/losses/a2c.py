"""The policy gradient itself, without importance ratios: advantage actor-critic, and REINFORCE with a baseline."""

from __future__ import annotations

from torch import Tensor
from torchrl.objectives import A2CLoss

from rlexp.losses.lean import LeanLoss
from rlexp.losses.terms import Terms


class LeanA2CLoss(LeanLoss, A2CLoss):
    """``torchrl.objectives.A2CLoss`` (Mnih et al. 2016, algorithm S3), see `LeanLoss`.

    With the whole return as the value target, REINFORCE with a baseline (Williams 1992; Sutton and Barto 2018, section
    13.4), and so ``torchrl.objectives.ReinforceLoss``, whose ``loss_actor`` and ``loss_value`` are the two parts here.
    """

    @property
    def step_keys(self) -> list[str]:
        """See `LeanLoss`."""
        return list(dict.fromkeys([*super().step_keys, "action_log_prob"]))

    def objective(self, terms: Terms, advantage: Tensor, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log-probability times advantage, as minimised."""
        # The terms may lack a share that the ratio does not need; here it is part of the value, not of the gradient.
        log_weight = terms.log_prob - terms.old_log_prob
        log_prob = log_weight + minibatch["action_log_prob"]
        return {"loss_objective": -(log_prob * advantage).mean(), "log_weight": log_weight.detach()}
