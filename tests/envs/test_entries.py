"""Observations of several entries: transitions, statistics and state, entry by entry."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import parts
import pytest
import torch
from gymnasium import spaces
from numpy.testing import assert_allclose
from torchrl.envs.utils import check_env_specs

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.gymnasium.simulators import SimulatorError
from rlexp.envs.normalization import commit_normalization, init_normalization, observation_norms
from rlexp.kernels.rollout import ArrayTransforms

SEEDS = [11, 22, 33]


def flat(observation: dict[str, Any]) -> dict[str, Any]:
    """The entries as they are documented."""
    arm = observation["arm"]
    return {
        "arm": np.concatenate([arm["a"], arm["b"]]).astype(np.float64),
        "camera": observation["camera"],
        "mode": np.eye(3, dtype=np.float32)[observation["mode"]],
        "secret": observation["secret"],
    }


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_entry_equals_plain_gymnasiums_to_the_bit(num_workers: int) -> None:
    batched = BatchedGymEnv("parts:Parts-v0", num_envs=3, num_workers=num_workers)
    check_env_specs(batched)
    plain = [gymnasium.make("parts:Parts-v0") for _ in SEEDS]
    batched.set_seeds(SEEDS)
    tensordict = batched.reset()
    observations = [env.reset(seed=seed)[0] for env, seed in zip(plain, SEEDS, strict=True)]
    ended = 0
    for _ in range(30):
        for i, observation in enumerate(observations):
            for name, expected in flat(observation).items():
                found = tensordict[name][i].numpy()
                assert found.dtype == expected.dtype
                assert np.array_equal(found, expected)
        action = batched.action_spec.rand()
        _, tensordict = batched.step_and_maybe_reset(tensordict.set("action", action))
        for i, env in enumerate(plain):
            observations[i], _, terminated, truncated, _ = env.step(action[i].numpy())
            if terminated or truncated:
                observations[i], ended = env.reset()[0], ended + 1
    batched.close()
    assert ended > 3


def test_simulators_go_on_from_their_state() -> None:
    one, other = (BatchedGymEnv("parts:Parts-v0", num_envs=2) for _ in range(2))
    one.set_seed(0)
    tensordict = one.rollout(5, break_when_any_done=False)[:, -1]["next"].exclude("reward")
    other.reset()
    other.load_simulator_state(one.simulator_state())
    action = torch.zeros(2, 2)
    ours, theirs = (env.step(tensordict.clone().set("action", action))["next"] for env in (one, other))
    for name in ("arm", "camera", "mode", "secret"):
        assert torch.equal(ours[name], theirs[name])


def test_flattened_they_are_the_vector_of_gymnasium() -> None:
    batched = BatchedGymEnv("parts:Vectors-v0", num_envs=2, flatten=True)
    batched.set_seeds(SEEDS[:2])
    found = batched.reset()["observation"]
    assert found.dtype is torch.float64
    plain = gymnasium.make("parts:Vectors-v0")
    for row, seed in zip(found.numpy(), SEEDS, strict=False):
        observation, _ = plain.reset(seed=seed)
        assert np.array_equal(row, spaces.flatten(plain.observation_space, observation))
    batched.close()
    with pytest.raises(ConfigError, match="'camera' is an image"):
        BatchedGymEnv("parts:Parts-v0", num_envs=1, flatten=True)


def test_a_dict_of_one_entry_is_that_entry() -> None:
    gymnasium.register(
        "One-v0", lambda: gymnasium.wrappers.FilterObservation(parts.Parts(), ["secret"]), max_episode_steps=9
    )
    env = BatchedGymEnv("One-v0", num_envs=2)
    del gymnasium.registry["One-v0"]
    assert env.reset()["observation"].shape == (2, 3)


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        ({"reward": spaces.Box(0, 1, (1,))}, "'reward' is called like something else that a batch holds"),
        ({"shape": spaces.Box(0, 1, (1,))}, "'shape' is called like something else that a batch holds"),
        ({"nothing": spaces.Box(0, 1, (0,))}, r"'nothing' has no numbers: its shape is \(0,\)"),
        ({"deep": spaces.Dict(x=spaces.Box(0, 255, (8, 8, 3), np.uint8))}, r"'deep.x' is an image(.|\n)*outermost"),
        ({"many": spaces.Sequence(spaces.Discrete(2))}, "of no fixed size"),
    ],
)
def test_entries_that_cannot_be_kept_are_refused(more: dict[str, Any], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        BatchedGymEnv("parts:Parts-v0", num_envs=1, kwargs=more)


def test_an_entry_that_changes_its_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    env = BatchedGymEnv("parts:Parts-v0", num_envs=1)
    tensordict = env.rollout(9, break_when_any_done=False)[:, -1]["next"].exclude("reward")
    shown = parts.Parts._observation
    monkeypatch.setattr(parts.Parts, "_observation", lambda self: shown(self) | {"secret": np.zeros(1, np.float32)})
    with pytest.raises(SimulatorError, match=r"'secret'\] of shape \(1,\), and its space has \(3,\)"):
        env.step(tensordict.set("action", torch.zeros(1, 2)))


def test_vectors_are_normalised_each_by_its_own_statistics_and_images_are_left_alone() -> None:
    config = load_config([*parts.ENV, "policy=cnn", "env.init_random_steps=30"]).env
    env, bare = config.build(3), config.build_base(3)
    env.set_seed(3)
    init_normalization(env, 30)
    (norm,) = observation_norms(env)
    assert norm.in_keys == ["arm", "mode", "secret"]
    start = norm.moments.count.item()
    assert start == 30
    before = {name: (norm.parts(norm.loc)[name].numpy().copy(), norm.parts(norm.scale)[name].numpy().copy())
              for name in norm.in_keys}  # fmt: skip
    arrays = ArrayTransforms(env).observation()
    for simulators in (env, bare):
        simulators.set_seed(5)
    tensordict, raw = env.reset(), bare.reset()
    seen: dict[str, list[Any]] = {name: [] for name in norm.in_keys}
    for _ in range(20):
        action = env.action_spec.rand()
        stepped, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
        bare_stepped, raw = bare.step_and_maybe_reset(raw.set("action", action))
        rows = arrays(env.base_env.arrays.observation)
        for name in norm.in_keys:
            values = bare_stepped["next", name].numpy().astype(np.float64)
            seen[name].append(values)
            loc, scale = before[name]
            expected = ((values - loc) / scale).clip(-10, 10)
            assert_allclose(stepped["next", name].numpy(), expected, rtol=1e-4, atol=1e-5)
            assert_allclose(rows[name], tensordict[name].numpy(), rtol=1e-6, atol=1e-7)
        assert torch.equal(stepped["next", "camera"], bare_stepped["next", "camera"])
    assert stepped["next", "arm"][:, 0].eq(0).all()  # a flag that has not varied
    commit_normalization(env)
    for name in norm.in_keys:
        values, (loc, scale) = np.concatenate(seen[name]), before[name]
        total = start + len(values)
        mean = (loc * start + values.sum(0)) / total
        assert_allclose(norm.parts(norm.loc)[name].numpy(), mean, rtol=1e-9)
        varies = np.isfinite(scale)
        second = (scale[varies] ** 2 + loc[varies] ** 2) * start + (values[:, varies] ** 2).sum(0)
        deviation = np.sqrt(second / total - mean[varies] ** 2)
        assert_allclose(norm.parts(norm.scale)[name].numpy()[varies], deviation, rtol=1e-6)


def test_an_image_alone_leaves_nothing_to_normalise() -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    config = load_config(["env=cartpole", "env.from_pixels=true", "policy=cnn", "env.pixels.size=16"]).env
    env = config.build(2)
    init_normalization(env, 20)
    assert env.rollout(3)["observation"].dtype is torch.uint8


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["env/transforms=frozen"], r"observation_norm(.|\n)*normalises observation, and the environment observes arm"),
        (["env.transforms.observation_norm.in_keys=[camera]"], r"camera is uint8 \[1, 8, 8\](.|\n)*transforms=none"),
        (["env.transforms.observation_norm.in_keys=[legs]"], "normalises legs, and the environment observes arm"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(overrides: list[str], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        load_config([*parts.ENV, "policy=cnn", *overrides]).env.build(2)
