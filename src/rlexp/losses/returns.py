"""Discounted sums along time, at a cost that hardly depends on its length."""

from __future__ import annotations

from torch import Tensor


def discounted_sums(x: Tensor, discount: Tensor) -> Tensor:
    r"""$y_t = x_t + d_t y_{t+1}$ along the last dimension, in as many steps as its length has bits.

    The parallel scan of Hillis and Steele (1986): after the step of width $w$, $y_t$ holds the first $2w$ terms.

    Args:
        x: ``[..., time]``.
        discount: the same shape; its last entry is not used.
    """
    total, width = x.clone(), 1
    product = discount[..., :-1]
    while width < x.shape[-1]:
        total[..., :-width] += product * total[..., width:]
        product = product[..., :-width] * product[..., width:]
        width *= 2
    return total
