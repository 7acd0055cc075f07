"""Value targets in units of their running standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlexp.distributed import ALONE, Group
from rlexp.envs.normalization import Moments


class ValueNorm(nn.Module):
    r"""The scale $s = \sqrt{\mathrm{Var}[G] + \epsilon}$ of the value targets $G$ seen so far.

    The critic learns $G / s$, and its output times $s$ is the value; rewards and advantages keep their units, as in
    Tianshou (Weng et al. 2022). Nothing is centred: a critic that knows nothing says 0. Each batch is counted once,
    before it is scaled, by its targets before the update.

    Args:
        eps: $\epsilon$, keeps a task without rewards finite.
        group: the learners, whose targets together make a batch.
    """

    def __init__(self, eps: float = 1e-8, group: Group = ALONE) -> None:
        super().__init__()
        self.eps, self._group = eps, group
        self.moments = Moments()

    @property
    def scale(self) -> Tensor:
        """$s$; 1 before the first batch."""
        return (self.moments.var + self.eps).sqrt()

    @torch.no_grad()
    def forward(self, target: Tensor, *, new: bool) -> Tensor:
        """Scale value targets of any shape; those of a ``new`` batch are taken in first."""
        if new:
            self.moments.update(target.flatten(), self._group)
        return target / self.scale.to(target)


def take_value_norm(norm: ValueNorm | None, state: Mapping[str, Any]) -> None:
    """Take the scale that the critic of another run learned in, from its learner's ``state_dict``.

    Raises:
        RuntimeError: one of the two has a scale and the other none, so that the critic's values mean something else.
    """
    saved = state.get("value_norm", {})
    if norm is not None:
        norm.load_state_dict(saved)
    elif saved:
        raise RuntimeError("its critic was trained with loss.normalize_value=true")
