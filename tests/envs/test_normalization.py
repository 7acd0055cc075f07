"""Running statistics against NumPy on all the data at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torchrl.envs import Transform

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.normalization import (
    Moments,
    RunningObservationNorm,
    commit_normalization,
    copy_normalization,
    init_normalization,
    observation_norms,
)
from rlexp.kernels.rollout import ArrayTransforms

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


class Numbers(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Observes rows of a table, one after the other, for ever."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, table: Any) -> None:
        limits: Any = np.iinfo(table.dtype) if table.dtype.kind in "iu" else np.finfo(table.dtype)
        self.observation_space = gymnasium.spaces.Box(limits.min, limits.max, table.shape[1:], table.dtype)
        self.table, self.row = table, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.table[self.row % len(self.table)], {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.row += 1
        return self.table[self.row % len(self.table)], 1.0, False, False, {}


class FromTheTop(Numbers):
    """Begins each episode with the first row."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self.row = 0
        return super().reset(**options)


@pytest.fixture
def numbers() -> Iterator[None]:
    gymnasium.register("Numbers-v0", Numbers, max_episode_steps=1000)
    gymnasium.register("FromTheTop-v0", FromTheTop, max_episode_steps=1000)
    yield
    del gymnasium.registry["Numbers-v0"], gymnasium.registry["FromTheTop-v0"]


def of(table: Any, transforms: str = "running", steps: int = 40) -> Any:
    config = load_config(["env=gym", "env.id=Numbers-v0", f"env/transforms={transforms}", "env.num_envs=1"]).env
    env = config.model_copy(update={"kwargs": {"table": table}}).build(1)
    env.set_seed(0)
    init_normalization(env, steps)
    return env


def test_a_constant_of_single_precision_stays_silent(numbers: None) -> None:
    """0.1 has no exact mean in float32: the rounding of a sum must not pass for a deviation."""
    table = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    table[:, :2] = 1234.567, 0.1
    env = of(table, steps=1000)
    (norm,) = observation_norms(env)
    assert norm.loc[1].item() == np.float32(0.1)
    for _ in range(3):
        assert norm.scale.isinf().tolist() == [True, True, False]
        env.rollout(200)
        commit_normalization(env)


@pytest.mark.parametrize("transforms", ["running", "frozen"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_statistics_are_of_episodes_within_the_time_limit(dtype: str, transforms: str, numbers: None) -> None:
    table = np.arange(1000, dtype=dtype)[:, None] * np.ones(2, dtype)
    limit = "env.transforms.step_counter.max_steps=10"
    config = load_config(["env=gym", "env.id=FromTheTop-v0", f"env/transforms={transforms}", "env.num_envs=1", limit])
    env = config.env.model_copy(update={"kwargs": {"table": table}}).build(1)
    env.set_seed(0)
    init_normalization(env, 200)
    (norm,) = observation_norms(env)
    assert isinstance(norm, RunningObservationNorm) == (transforms == "running")
    assert norm.loc[0].item() == pytest.approx(4.5 if norm.standard_normal else -4.5 * norm.scale[0].item())
    spread = norm.scale[0].item() if norm.standard_normal else 1 / norm.scale[0].item()
    assert spread == pytest.approx(np.arange(10).std(), rel=0.1)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", "float64"])
def test_large_numbers_keep_their_differences(dtype: str, numbers: None) -> None:
    offsets = np.random.default_rng(0).integers(-20, 20, (40, 1))
    env = of((1_700_000_000 + offsets).astype(dtype))
    rows = env.rollout(39)["observation"]
    # The first 40 observations are the table itself, of which the mean and deviation are known.
    seen = np.roll(offsets, -40, 0)[:39]
    expected = (seen - offsets.mean()) / offsets.std(ddof=1)
    slope, _ = np.polyfit(expected.ravel(), rows[0].numpy().ravel(), 1)
    assert slope == pytest.approx(1, rel=0.05)
    assert np.corrcoef(expected.ravel(), rows[0].numpy().ravel())[0, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("transforms", ["running", "frozen"])
def test_a_dimension_without_variance_gives_zero_whatever_it_becomes(transforms: str, numbers: None) -> None:
    table = np.column_stack([np.full(200, 0.1), np.arange(200) % 7]).astype(np.float32)
    table[100:, 0] = 5  # beyond the random steps
    env = of(table, transforms)
    rows = env.rollout(120)["observation"][0]
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1].std() == pytest.approx(1, abs=0.1)
    if transforms == "running":
        commit_normalization(env)
        assert (env.rollout(20)["observation"][0, :, 0] != 0).all()


def test_the_array_rollout_normalises_float32_as_torchrl_does(numbers: None) -> None:
    table = (1e4 + np.random.default_rng(0).normal(size=(50, 3))).astype(np.float32)
    env = of(table)
    fast = ArrayTransforms(env).observation()(table)
    slow = env.transform[0]._apply_transform(torch.from_numpy(table)).numpy()
    assert fast.dtype == slow.dtype == np.float32
    assert np.array_equal(fast, slow)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_stand_for_no_reading_are_named(dtype: str, numbers: None) -> None:
    table = np.ones((10, 2), dtype)
    table[::5, 0] = np.finfo(np.float32).max
    with pytest.raises(ConfigError, match=r"env\.transforms\n(.|\n)*a missing reading(.|\n)*env/transforms=none"):
        of(table)


@pytest.mark.parametrize("clip", ["-10", "0", "nan"])
def test_a_bound_that_leaves_nothing_is_refused(clip: str) -> None:
    with pytest.raises(ConfigError, match=r"env\.transforms\.observation_norm(.|\n)*clip must be above 0, or null"):
        load_config(["env=pendulum", f"env.transforms.observation_norm.clip={clip}"]).env.build(2)


def test_null_is_no_bound() -> None:
    env = load_config(["env=pendulum", "env.transforms.observation_norm.clip=null"]).env.build(2)
    init_normalization(env, 20)
    (norm,) = observation_norms(env)
    assert norm._clipped(torch.tensor([1e6]), torch.float32) == 1e6


def test_one_random_step_of_one_simulator_has_no_deviation() -> None:
    env = load_config(["env=pendulum"]).env.build(1)
    init_normalization(env, 1)
    assert env.reset()["observation"].tolist() == [[0, 0, 0]]


class Demanding(Transform):  # type: ignore[misc, unused-ignore]
    def set_container(self, container: Any) -> None:
        raise RuntimeError("needs another environment")


def test_a_transform_that_no_environment_bears_is_named() -> None:
    added = "env.transforms.mine._target_"
    with pytest.raises(ConfigError, match=r"env\.transforms\n *cannot be put around(.|\n)*needs another environment"):
        load_config(["env=pendulum", f"{added}={__name__}.Demanding"]).env.build(2)
    tracked = load_config(["env=pendulum", f"{added}=torchrl.envs.InitTracker"]).env.build(2)
    init_normalization(tracked, 20)
    assert tracked.rollout(3)["is_init"][:, 0].all()
    tracked.close()
