"""PPO with an adaptive KL penalty."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import KLPENPPOLoss


class KLPenaltyLoss(KLPENPPOLoss):
    """``torchrl.objectives.KLPENPPOLoss`` (Schulman et al. 2017, eq. 8), its penalty adapted once per update.

    The paper adapts the weight of the penalty after each update (section 4); torchrl does so with every minibatch.

    Args:
        args, kwargs: as for torchrl's class.
        increment: factor of ``beta`` after an update whose KL is above 1.5 ``dtarg``.
        decrement: factor of ``beta`` after an update whose KL is below ``dtarg`` / 1.5.
    """

    def __init__(self, *args: Any, increment: float, decrement: float, **kwargs: Any) -> None:
        super().__init__(*args, increment=1.0, decrement=1.0, **kwargs)
        self.raised, self.lowered = increment, decrement

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses and diagnostics of a minibatch, as torchrl's, with ``beta`` beside them."""
        out: TensorDictBase = super().forward(tensordict)
        return out.set("beta", self.beta.clone())

    def end_update(self, kl: Tensor) -> None:
        """Raise or lower ``beta`` by the KL of the last epoch, in nats."""
        if kl > 1.5 * self.dtarg:
            self.beta *= self.raised
        elif kl < self.dtarg / 1.5:
            self.beta *= self.lowered
