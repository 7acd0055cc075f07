"""Reward normalisation by the running standard deviation of the discounted return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlexp.distributed import ALONE, Group
from rlexp.envs.normalization import Moments
from rlexp.kernels.scan import discounted_sums
from rlexp.losses.value_norm import ValueNorm


class RewardNorm(nn.Module):
    r"""Scale rewards so that discounted returns have standard deviation about 1.

    $r_t \mapsto r_t / \sqrt{\mathrm{Var}[R] + \epsilon}$ with $R_t = \gamma R_{t-1} + r_t$, cut at episode ends
    (Engstrom et al. 2020, section 3). The variance is over every step so far; one batch is scaled alike throughout.

    Args:
        num_envs: environments that the rewards come from; each keeps its own $R$ across batches.
        gamma: discount.
        eps: $\epsilon$, keeps a task without rewards finite.
        group: the learners, whose environments together make the variance.
    """

    discounted: Tensor

    def __init__(self, num_envs: int, gamma: float, eps: float = 1e-8, group: Group = ALONE) -> None:
        super().__init__()
        self.gamma, self.eps, self._group = gamma, eps, group
        self.moments = Moments()
        self.register_buffer("discounted", torch.zeros(num_envs, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, reward: Tensor, done: Tensor) -> Tensor:
        """Fold in a batch of rewards and scale it.

        Args:
            reward: ``[num_envs, steps, 1]``.
            done: whether the episode ended at that step, same shape.

        Returns:
            The scaled rewards, same shape and type.
        """
        rewards, alive = reward[..., 0].to(self.discounted), (~done[..., 0]).to(self.discounted)
        # The recursion runs forward in time, `discounted_sums` backward: R_0 first takes in what was carried.
        rewards = torch.cat([self.discounted[:, None], rewards], -1)
        ones = torch.ones_like(alive[:, :1])
        decay = self.gamma * torch.cat([ones, ones, alive[:, :-1]], -1)
        returns = discounted_sums(rewards.flip(-1), decay.flip(-1)).flip(-1)[:, 1:]
        self.discounted.copy_(returns[:, -1] * alive[:, -1])
        self.moments.update(returns.flatten(), self._group)
        return reward / (self.moments.var + self.eps).sqrt().to(reward)


def take_norms(reward_norm: RewardNorm | None, value_norm: ValueNorm | None, state: Mapping[str, Any]) -> None:
    """Take the scales that the critic of another run learned in, from its learner's ``state_dict``.

    Raises:
        RuntimeError: one of the two runs has a scale and the other none, so that the critic's values mean something
            else.
    """
    norms: dict[str, RewardNorm | ValueNorm | None] = {"reward": reward_norm, "value": value_norm}
    for kind, norm in norms.items():
        saved = state.get(f"{kind}_norm", {})
        if bool(saved) != (norm is not None):
            raise RuntimeError(f"its critic was trained with loss.normalize_{kind}={str(bool(saved)).lower()}")
        if norm is not None:
            # The returns of its episodes are of its own simulators.
            norm.load_state_dict(saved | ({"discounted": norm.discounted} if isinstance(norm, RewardNorm) else {}))
