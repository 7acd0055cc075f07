"""The EnvPool backend: no junk step, true ends, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from rlexp import load_config
from rlexp.config import ConfigError

HOPPER = ["env=hopper", "env.backend=envpool", "env.num_envs=4"]


def test_a_missing_package_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlexp\[envpool\]'"):
        load_config(HOPPER)


class TestWithEnvPool:
    @pytest.fixture(autouse=True)
    def _needs_envpool(self) -> None:
        pytest.importorskip("envpool", reason="the extra rlexp[envpool] is not installed")

    def test_unknown_ids_are_refused_with_a_suggestion(self) -> None:
        with pytest.raises(ConfigError, match=r"env\.id=Hoper-v5(.|\n)*Did you mean Hopper-v5"):
            load_config(["env=gym", "env.id=Hoper-v5", "env.backend=envpool"])

    @pytest.mark.parametrize("frame_skip", [1, 2])
    def test_transitions_equal_bare_envpool_with_done_envs_reset_at_once(self, frame_skip: int) -> None:
        import envpool

        config = load_config([*HOPPER, "env.max_episode_steps=20", f"env.frame_skip={frame_skip}"])
        env = config.env.build_base(4)
        env.set_seeds([3, 1, 4, 1])
        tensordict = env.reset()
        plain = [envpool.make_gymnasium("Hopper-v5", num_envs=1, seed=s, max_episode_steps=20) for s in (3, 1, 4, 1)]
        observations = np.concatenate([pool.reset()[0] for pool in plain])
        assert np.array_equal(tensordict["observation"].numpy(), observations)
        generator = np.random.default_rng(0)
        ends = {"terminated": 0, "truncated": 0}
        for _ in range(50):
            action = generator.uniform(-1, 1, (4, 3)).astype(np.float32)
            stepped, tensordict = env.step_and_maybe_reset(tensordict.set("action", torch.from_numpy(action)))
            for i, pool in enumerate(plain):
                total = 0.0
                for _ in range(frame_skip):
                    observation, reward, terminated, truncated, _ = pool.step(action[i : i + 1].astype(np.float64))
                    total += reward[0]
                    if terminated[0] or truncated[0]:
                        break
                after = stepped["next"][i]
                assert np.array_equal(after["observation"].numpy(), observation[0])
                assert after["reward"].item() == pytest.approx(total, rel=1e-6)
                assert (after["terminated"].item(), after["truncated"].item()) == (terminated[0], truncated[0])
                ends["terminated"] += terminated[0]
                ends["truncated"] += truncated[0]
                if terminated[0] or truncated[0]:
                    observation, _ = pool.reset()
                assert np.array_equal(tensordict["observation"][i].numpy(), observation[0])
        assert all(ends.values())

    def test_specs_hold_and_a_batch_can_be_collected(self, tmp_path: object) -> None:
        from rlexp.envs.normalization import init_normalization
        from rlexp.kernels.rollout import RolloutCollector

        config = load_config(HOPPER)
        env = config.env.build(4)
        env.set_seed(0)
        init_normalization(env, 40)
        check_env_specs(env)
        actor = config.policy.build(env, torch.device("cpu")).actor
        batch = RolloutCollector(env, actor, 400, torch.device("cpu")).rollout()
        assert batch["action"].dtype == batch["observation"].dtype == torch.float32
        after = batch["next"]
        assert after["done"].any()
        # The step after an end is the first of an episode, and starts from another state than the one that ended it.
        first = torch.cat([torch.zeros(4, 1, 1, dtype=torch.bool), after["done"][:, :-1]], 1)
        assert (batch["step_count"][first] == 0).all()
        assert (
            not torch.isclose(batch["observation"][:, 1:], after["observation"][:, :-1])
            .all(-1)[after["done"][:, :-1, 0]]
            .any()
        )

    def test_choices_are_whole_numbers(self) -> None:
        env = load_config(["env=cartpole", "env.backend=envpool"]).env.build_base(4)
        check_env_specs(env)
        rollout = env.rollout(5)
        assert (rollout["action"].dtype, rollout["action"].shape) == (torch.int64, (4, 5))
