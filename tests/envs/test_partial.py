"""Partially observed tasks against Gymnasium's own."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest


def test_a_price_is_kept_for_an_episode_and_changes_rewards_alone() -> None:
    priced = gymnasium.make("rlexp.envs.partial:PricedPendulum-v1")
    plain = gymnasium.make("Pendulum-v1")
    actions = np.random.default_rng(0).uniform(-2, 2, (200, 1)).astype(np.float32)
    prices = []
    for seed in range(50):
        shown, _ = priced.reset(seed=seed)
        expected, _ = plain.reset(seed=seed)
        prices.append(shown["price"].item())
        assert np.array_equal(shown["state"], expected)
        for action in actions[: 200 if seed == 0 else 3]:
            shown, reward, terminated, truncated, _ = priced.step(action)
            expected, own, _, ended, _ = plain.step(action)
            assert np.array_equal(shown["state"], expected)
            assert shown["price"].item() == prices[-1]
            assert float(reward) == pytest.approx(float(own) + prices[-1])
            assert (terminated, truncated) == (False, ended)
    assert min(prices) < -8
    assert max(prices) > 8
    assert abs(np.mean(prices)) < 3
    assert priced.observation_space.contains(shown)
