"""The rollout collector against torchrl's, entry by entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from replay import Replay
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import (
    BinarizeReward,
    Compose,
    DoubleToFloat,
    InitTracker,
    RewardClipping,
    RewardScaling,
    RewardSum,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import IndependentNormal, ProbabilisticActor

from rlexp import load_config
from rlexp.agent.evaluation import evaluate
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.normalization import RunningObservationNorm, commit_normalization, init_normalization, observation_norms
from rlexp.kernels.acting import acting
from rlexp.kernels.rollout import ArrayTransforms, RolloutCollector, step_counts
from rlexp.kernels.unsupported import UnsupportedError

CPU = torch.device("cpu")


CLIPPED = "env.transforms.clip={_target_: torchrl.envs.RewardClipping, clamp_min: 0.9, clamp_max: 1.1}"
SCALED = "env.transforms.scale={_target_: torchrl.envs.RewardScaling, loc: 0.5, scale: 0.1}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["env=hopper", "env.max_episode_steps=20", "env.num_envs=3"],
        ["env=inverted_double_pendulum", "env.num_envs=1", "env/transforms=frozen"],
        ["env=gym", "env.id=Pendulum-v1", "env.num_envs=2", "env.max_episode_steps=15", "policy.num_cells=[200,200]"],
        ["env=half_cheetah", "env.num_envs=2", "env/transforms=none", "policy.state_independent_scale=false"],
        ["env=hopper", "env.num_envs=5", "policy.activation_class=ELU", "env.frame_skip=2"],
        ["env=cartpole", "env.num_envs=3"],
        ["env=hopper", "env.num_envs=3", CLIPPED],
        ["env=hopper", "env.num_envs=3", SCALED, CLIPPED],
    ],
    ids=["hopper", "one_env", "float32_wide", "no_norm", "elu_frame_skip", "discrete", "clipped", "scaled_clipped"],
)
def test_batches_equal_torchrls_entry_by_entry(overrides: list[str]) -> None:
    config = load_config([*overrides, "collector.frames_per_batch=120", "minibatch_size=30"])
    ours, theirs = config.env.build(config.env.num_envs), config.env.build(config.env.num_envs)
    for env in (ours, theirs):
        torch.manual_seed(0)
        env.set_seed(3)
        init_normalization(env, 20)
    networks = config.policy.build(ours, CPU)
    with torch.no_grad():
        for parameter in networks.actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    collector = RolloutCollector(ours, networks.actor, config.steps_per_batch, CPU)
    # A batch is a snapshot: statistics move between the two.
    batches = []
    for _ in range(2):
        batches.append(collector.rollout())
        commit_normalization(ours)
    replay = Replay(networks.actor, batches)
    reference = iter(
        Collector(
            theirs,
            replay,
            frames_per_batch=config.steps_per_batch,
            total_frames=-1,
            split_trajs=False,
            storing_device=CPU,
            trust_policy=True,
            auto_register_policy_transforms=False,
        )
    )
    replay.t = 0  # it tried the policy
    assert any(batch["next", "done"].any() for batch in batches) or "env=half_cheetah" in overrides
    for batch in batches:
        expected = next(reference)
        commit_normalization(theirs)
        assert set(batch.keys(True, True)) == set(expected.keys(True, True))
        assert (batch.batch_size, batch.names, batch.device) == (expected.batch_size, expected.names, expected.device)
        for key in expected.keys(True, True):
            assert batch[key].dtype == expected[key].dtype, key
            assert torch.equal(batch[key], expected[key]), key
    for a, b in zip(observation_norms(ours), observation_norms(theirs), strict=True):
        assert torch.equal(a.loc, b.loc)
        assert torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("overrides", [[], ["policy.state_independent_scale=false"], ["policy.num_cells=[256,256]"]])
def test_it_acts_as_the_actor_does(overrides: list[str]) -> None:
    """Actions, their parameters and log-probabilities, from the same noise."""
    config = load_config(["env.num_envs=3", "collector.frames_per_batch=60", "minibatch_size=60", *overrides])
    env = config.env.build(3)
    env.set_seed(0)
    init_normalization(env, 20)
    networks = config.policy.build(env, CPU)
    batch = RolloutCollector(env, networks.actor, 3 * 20, CPU)
    torch.manual_seed(1)
    rollout = batch.rollout()
    torch.manual_seed(1)
    for t in range(20):
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            acted = networks.actor(rollout[:, t].select("observation"))
        for key in ("action", "loc", "scale", "action_log_prob"):
            torch.testing.assert_close(rollout[key][:, t], acted[key], rtol=1e-4, atol=1e-5)


def test_any_actor_of_observations_is_served(tmp_path: Path) -> None:
    env = load_config(["env.num_envs=4"]).env.build(4)
    env.set_seed(0)
    init_normalization(env, 20)
    network = nn.Sequential(nn.Linear(9, 2), _Halves())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec_unbatched,
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    batch = RolloutCollector(env, actor, 40, CPU).rollout()
    again = actor.get_dist(batch.select("observation")).log_prob(batch["action"])
    torch.testing.assert_close(batch["action_log_prob"], again, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch["loc"], network(batch["observation"])[0])


class _Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loc, scale = x.chunk(2, -1)
        return loc, scale.exp()


def test_state_goes_on_where_it_was() -> None:
    """A second collector over the same simulators goes on exactly as the first would have."""
    config = load_config(["env=hopper", "env.num_envs=4"])
    batches: dict[bool, list[TensorDictBase]] = {}
    for swap in (False, True):
        torch.manual_seed(0)
        env = config.env.build(4)
        env.set_seed(0)
        init_normalization(env, 30)
        actor = config.policy.build(env, CPU).actor
        collector = RolloutCollector(env, actor, 160, CPU)
        batches[swap] = [collector.rollout()]
        commit_normalization(env)
        if swap:
            state = collector.state_dict()
            assert state["recurrent"] == {}  # an MLP has none
            collector = _without_reset(collector)
            collector.load_state_dict(state)
        batches[swap].append(collector.rollout())
    for a, b in zip(batches[False], batches[True], strict=True):
        assert (a == b).all()


def _without_reset(old: RolloutCollector) -> RolloutCollector:
    """A collector over the same env that knows nothing; building one resets the simulators, which a resume undoes."""
    new = object.__new__(RolloutCollector)
    new.__dict__.update(old.__dict__)
    for name in ("_observation", "_step_count", "_episode_reward", "_traj_id", "_next_traj_id"):
        new.__dict__.pop(name)
    return new


def test_what_it_does_not_know_is_named() -> None:
    config = load_config(["env.num_envs=2"]).env
    unknown = TransformedEnv(config.build_base(2), Compose(DoubleToFloat(), BinarizeReward()))
    actor = load_config().policy.build(unknown, CPU).actor
    with pytest.raises(UnsupportedError, match="BinarizeReward"):
        RolloutCollector(unknown, actor, 20, CPU)
    for own in (StepCounter, RewardSum, InitTracker):
        slower = type(f"Own{own.__name__}", (own,), {})()
        with pytest.raises(UnsupportedError, match=f"the transform Own{own.__name__}"):
            ArrayTransforms(TransformedEnv(config.build_base(2), Compose(DoubleToFloat(), slower)))
    twice = TransformedEnv(
        config.build_base(2), Compose(*(RunningObservationNorm(in_keys=["observation"]) for _ in range(2)))
    )
    with pytest.raises(UnsupportedError, match="what other transforms changed"):
        ArrayTransforms(twice)
    with pytest.raises(UnsupportedError, match="step_count"):
        acting(TensorDictModule(nn.Identity(), in_keys=["step_count"], out_keys=["action"]), 2)


def test_step_counts_over_many_ends() -> None:
    done = np.random.default_rng(0).random((50, 4)) < 0.2
    carried = np.array([0, 3, 7, 1])
    before, going_on = step_counts(done, carried)
    count: Any = carried.copy()
    for t in range(50):
        assert (before[t] == count).all()
        count = np.where(done[t], 0, count + 1)
    assert (going_on == count).all()


def test_simulators_without_arrays_are_left_to_torchrl() -> None:
    from torchrl.envs import GymEnv

    env = TransformedEnv(GymEnv("Pendulum-v1"), DoubleToFloat())
    with pytest.raises(UnsupportedError, match="GymEnv has no array interface"):
        RolloutCollector(env, nn.Identity(), 20, CPU)
    assert not isinstance(env.base_env, BatchedGymEnv)


def test_rewards_are_clipped_before_they_are_summed_where_that_is_the_order() -> None:
    clip, summed = RewardClipping(0, 0.5), RewardSum()
    returns = {}
    for name, order in (("clipped", (clip, summed)), ("own", (summed.clone(), clip.clone()))):
        base = load_config(["env=cartpole"]).env.build_base(1)
        env = TransformedEnv(base, Compose(DoubleToFloat(), *order, StepCounter()))
        transforms = ArrayTransforms(env)
        reward, added = transforms.rewards(np.ones((4, 1)))
        assert reward.tolist() == [[0.5]] * 4
        returns[name] = added.sum()
        env.close()
    assert returns == {"clipped": 2, "own": 4}


def test_evaluation_is_the_same_by_arrays_and_by_torchrl() -> None:
    """Whole episodes on given seeds; a transform that only torchrl knows makes evaluation go its way.

    Either way it is the environment's own rewards that count.
    """
    config = load_config(["env.num_envs=4"])
    env = config.env.build(3)
    init_normalization(env, 20)
    actor = config.policy.build(env, CPU).actor
    by_arrays = evaluate(env, actor, [1, 2, 3, 4, 5])
    env.append_transform(RewardScaling(0.0, 0.5))
    assert evaluate(env, actor, [1, 2, 3, 4, 5]) == by_arrays
    env.append_transform(BinarizeReward())
    by_torchrl = evaluate(env, actor, [1, 2, 3, 4, 5])
    assert by_arrays.lengths == by_torchrl.lengths
    assert by_arrays.returns == pytest.approx(by_torchrl.returns, rel=1e-5)
