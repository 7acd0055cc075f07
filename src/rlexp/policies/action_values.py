"""A Q critic whose values are distributions over bins, and the targets that it learns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Bins(nn.Module):
    r"""The real line cut into bins, over which a value is a distribution (HL-Gauss; Imani and White 2018).

    A value $y$ becomes the probabilities that $\mathcal{N}(y, \sigma^2)$ gives the bins, with $\sigma$ of 0.75 bins
    (Farebrother et al. 2024, section 3.1); a distribution becomes its mean over the bins' centres.

    Args:
        low: lower end of the first bin; what lies below it is taken for it.
        high: upper end of the last bin, likewise.
        count: bins.
    """

    edges: Tensor

    def __init__(self, low: float, high: float, count: int) -> None:
        super().__init__()
        self.low, self.high, self.sigma = low, high, 0.75 * (high - low) / count
        self.register_buffer("edges", torch.linspace(low, high, count + 1), persistent=False)

    def probabilities(self, value: Tensor) -> Tensor:
        """The distributions ``[..., bins]`` that stand for values ``[...]``."""
        value = value.clamp(self.low, self.high)[..., None]
        below = torch.special.ndtr((self.edges - value) / self.sigma)
        probabilities: Tensor = below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
        return probabilities

    def mean(self, logits: Tensor) -> Tensor:
        """The values ``[...]`` of the distributions that logits ``[..., bins]`` make."""
        return logits.softmax(-1) @ ((self.edges[1:] + self.edges[:-1]) / 2)


class Judged(NamedTuple):
    """What the critic makes of states and actions.

    Attributes:
        logits: of the value's distribution ``[..., bins]``.
        value: its mean ``[...]``.
        features: of state and action ``[..., features]``.
    """

    logits: Tensor
    value: Tensor
    features: Tensor


class ActionValue(nn.Module):
    r"""$Q(s, a)$ as a distribution over bins, with a prediction of its own features of the next step.

    Args:
        reading: from the entries of an observation to one vector ``[n, observed]``.
        trunk: from that and the action, whose bounds are at -1 and 1, to features.
        value_head: from features to logits of the bins.
        predictor: from features to features of the next step.
        bins: of the value.
        bounds: of the actions, each ``[actions]``.
    """

    middle: Tensor
    half_range: Tensor

    def __init__(
        self,
        reading: nn.Module,
        trunk: nn.Module,
        value_head: nn.Module,
        predictor: nn.Module,
        bins: Bins,
        bounds: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.reading, self.trunk, self.value_head, self.predictor, self.bins = (
            reading, trunk, value_head, predictor, bins,
        )  # fmt: skip
        low, high = bounds
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.register_buffer("half_range", (high - low) / 2, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values ``[n, 1]`` of the entries of observations, and of actions within their bounds ``[n, actions]``."""
        *entries, action = inputs
        return self.judge(entries, self.squashed(action)).value[..., None]

    def squashed(self, action: Tensor) -> Tensor:
        """Actions with their bounds at -1 and 1."""
        return (action - self.middle) / self.half_range

    def judge(self, entries: list[Tensor], squashed: Tensor) -> Judged:
        """What the critic makes of entries of observations, and actions with their bounds at -1 and 1."""
        features = self.trunk(torch.cat([self.reading(*entries), squashed], -1))
        logits = self.value_head(features)
        return Judged(logits, self.bins.mean(logits), features)
