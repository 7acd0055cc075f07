"""The batched environment against plain Gymnasium, transition by transition."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from rlexp import load_config
from rlexp.envs.gymnasium import BatchedGymEnv

SEEDS = [11, 22, 33]


@pytest.mark.parametrize("env_id", ["InvertedDoublePendulum-v5", "Hopper-v5", "Pendulum-v1"])
@pytest.mark.parametrize("frame_skip", [1, 3])
def test_transitions_equal_plain_gymnasium_to_the_bit(env_id: str, frame_skip: int) -> None:
    batched = BatchedGymEnv(env_id, num_envs=3, frame_skip=frame_skip, max_episode_steps=40)
    plain = [gymnasium.make(env_id, max_episode_steps=40) for _ in SEEDS]
    batched.set_seeds(SEEDS)
    tensordict = batched.reset()
    observations = [env.reset(seed=seed)[0] for env, seed in zip(plain, SEEDS, strict=True)]
    assert np.array_equal(tensordict["observation"].numpy(), observations)
    generator = torch.Generator().manual_seed(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(60):
        low, high = batched.action_spec.space.low, batched.action_spec.space.high
        action = low + (high - low) * torch.rand(low.shape, generator=generator)
        stepped, tensordict = batched.step_and_maybe_reset(tensordict.set("action", action))
        for i, env in enumerate(plain):
            total, terminated, truncated = 0.0, False, False
            for _ in range(frame_skip):
                observation, reward, terminated, truncated, _ = env.step(action[i].numpy())
                total += float(reward)
                if terminated or truncated:
                    break
            after = stepped["next"][i]
            assert np.array_equal(after["observation"].numpy(), observation)
            assert after["reward"].item() == total
            assert (after["terminated"].item(), after["truncated"].item()) == (terminated, truncated)
            if terminated or truncated:
                ends["terminated"] += terminated
                ends["truncated"] += truncated
                observation, _ = env.reset()
            assert np.array_equal(tensordict["observation"][i].numpy(), observation)
    assert sum(ends.values()) > 0
    if env_id == "Pendulum-v1":
        assert ends["terminated"] == 0


@pytest.mark.parametrize("option", ["inverted_double_pendulum", "half_cheetah", "hopper", "inverted_pendulum"])
@pytest.mark.parametrize("transforms", ["none", "frozen", "running"])
def test_specs_hold(option: str, transforms: str) -> None:
    from rlexp.normalization import init_normalization

    env = load_config([f"env={option}", f"env/transforms={transforms}"]).env.build(2)
    env.set_seed(0)
    init_normalization(env, 50)
    check_env_specs(env)
    assert env.rollout(5)["observation"].dtype is torch.float32


def test_reset_of_one_leaves_the_others() -> None:
    env = BatchedGymEnv("Hopper-v5", num_envs=3)
    env.set_seed(0)
    tensordict = env.reset()
    before = tensordict["observation"].clone()
    after = env.reset(tensordict.set("_reset", torch.tensor([[False], [True], [False]])))["observation"]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


def test_seeding_gives_independent_simulators_and_repeats() -> None:
    env = BatchedGymEnv("InvertedPendulum-v5", num_envs=4)
    env.set_seed(0)
    first = env.reset()["observation"].clone()
    env.set_seed(0)
    assert torch.equal(env.reset()["observation"], first)
    env.set_seed(1)
    others = env.reset()["observation"]
    assert len(torch.cat([first, others]).unique(dim=0)) == 8
