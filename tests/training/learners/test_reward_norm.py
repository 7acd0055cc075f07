"""The reward's running scale against NumPy on all the rewards so far."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rlexp.training.learners.reward_norm import RewardNorm


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_it_is_the_running_deviation_of_discounted_returns(seed: int, gamma: float, sizes: list[int]) -> None:
    generator = np.random.default_rng(seed)
    rewards = generator.normal(2, 3, (2, sum(sizes)))
    dones = generator.random((2, sum(sizes))) < 0.1
    returns, running = [], np.zeros(2)
    norm = RewardNorm(2, gamma)
    start = 0
    for size in sizes:
        chunk = slice(start, start + size)
        for t in range(start, start + size):
            running = running * gamma + rewards[:, t]
            returns.append(running.copy())
            running = np.where(dones[:, t], 0, running)
        start += size
        scaled = norm(torch.from_numpy(rewards[:, chunk, None]), torch.from_numpy(dones[:, chunk, None]))
        deviation = np.sqrt(np.var(returns) + norm.eps)
        assert_allclose(scaled[..., 0].numpy(), rewards[:, chunk] / deviation, rtol=1e-6)
