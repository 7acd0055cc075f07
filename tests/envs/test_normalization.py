"""Running statistics against NumPy on all the data at once."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rlexp import load_config
from rlexp.envs.normalization import (
    Moments,
    commit_normalization,
    copy_normalization,
    init_normalization,
    observation_norms,
)

chunks = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@settings(deadline=None)
@given(chunks, st.integers(0, 2**31), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_moments_are_those_of_all_samples_however_they_came(
    sizes: list[int], seed: int, loc: float, scale: float
) -> None:
    samples = np.random.default_rng(seed).normal(loc, scale, (sum(sizes), 3))
    moments = Moments((3,))
    for chunk in np.split(samples, np.cumsum(sizes)[:-1]):
        moments.update(torch.from_numpy(chunk))
    assert moments.count == len(samples)
    assert_allclose(moments.mean.numpy(), samples.mean(0), rtol=1e-9, atol=1e-9 * scale)
    assert_allclose(moments.var.numpy(), samples.var(0), rtol=1e-7, atol=1e-9 * scale**2)


def test_running_statistics_stand_still_in_a_batch_and_count_every_step_once() -> None:
    config = load_config(["env=hopper", "env.num_envs=2", "env.init_random_steps=40"])
    env, bare = config.env.build(2), config.env.build_base(2)
    env.set_seed(3)
    init_normalization(env, config.env.init_random_steps)
    (norm,) = observation_norms(env)
    count, mean, var = (getattr(norm.moments, name).clone() for name in ("count", "mean", "var"))
    env.set_seed(5)
    bare.set_seed(5)
    tensordict, raw = env.reset(), bare.reset()
    seen = []
    for _ in range(30):
        action = env.action_spec.rand()
        stepped, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
        bare_stepped, raw = bare.step_and_maybe_reset(raw.set("action", action))
        seen.append(bare_stepped["next", "observation"].numpy())
        expected = ((seen[-1] - mean.numpy()) / np.sqrt(var.numpy())).clip(-10, 10)
        assert_allclose(stepped["next", "observation"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.moments.mean, mean)
    commit_normalization(env)
    samples = np.concatenate(seen)
    total = count.item() + len(samples)
    merged = (mean.numpy() * count.item() + samples.sum(0)) / total
    assert norm.moments.count.item() == total
    assert_allclose(norm.loc.numpy(), merged, rtol=1e-6)
    second = (var.numpy() + mean.numpy() ** 2) * count.item() + (samples**2).sum(0)
    assert_allclose(norm.scale.numpy(), np.sqrt(second / total - merged**2), rtol=1e-6)


def test_frozen_copy_does_not_learn() -> None:
    config = load_config(["env.init_random_steps=40"])
    source, target = config.env.build(2), config.env.build(3)
    source.set_seed(0)
    init_normalization(source, 40)
    copy_normalization(source, target)
    loc = observation_norms(target)[0].loc.clone()
    target.rollout(10)
    commit_normalization(target)
    assert torch.equal(observation_norms(target)[0].loc, loc)
    assert torch.equal(observation_norms(source)[0].loc, loc)
