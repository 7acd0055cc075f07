"""Raw observations in a batch: torchrl's collector and ours hold the same, and nothing else is changed by it."""

from __future__ import annotations

import pytest
import torch
from agents import composed
from replay import Replay, seeded
from tensordict import TensorDictBase
from torchrl.envs import TransformedEnv

from rlexp.collectors import Source
from rlexp.collectors.sync import SyncCollector
from rlexp.envs.normalization import commit_normalization, observation_norms
from rlexp.envs.raw_observations import RAW, keep_raw
from rlexp.envs.state import load_transforms_state, transforms_state
from rlexp.envs.torchrl import entries
from rlexp.experiment import ExperimentConfig
from rlexp.policies.recurrent import carry_state

CPU = torch.device("cpu")
SMALL = ["env.num_envs=3", "collector.frames_per_batch=96", "minibatch_size=48", "policy.num_cells=[8]"]
ENTRIES = ["env=gym", "env.id=rlexp.envs.partial:CartPoleEntries-v1", "env.name=entries", *SMALL]
CASES = {
    "array": ["env=hopper", *SMALL],
    "entries": [*ENTRIES, "policy=gru", "policy.actor_keys=[positions]", "policy.critic_keys=[positions]"],
    "masks": ["env=gym", "env.id=choosing:Choosing-v0", "env.kwargs.mask=entry", *SMALL, "policy=categorical"],
    "device": ["env=torch_cartpole", *SMALL],
}


def batches(config: ExperimentConfig, *, raw: bool) -> tuple[TransformedEnv, object, list[TensorDictBase]]:
    env = seeded(config)
    actor = config.policy.build(env, CPU).actor
    carry_state(env, actor)
    if raw:
        keep_raw(env)
    collector = config.collector.build(env, actor, Source(config.env, config.policy, 0, True), CPU)
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        found.append(next(iter(collector)))
        commit_normalization(env)
    return env, actor, found


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_torchrls_collector_and_change_no_other_entry(case: str) -> None:
    config = composed(*CASES[case])
    ours, actor, found = batches(config, raw=True)
    _, _, plain = batches(config, raw=False)
    theirs = seeded(config)
    carry_state(theirs, actor)
    keep_raw(theirs)
    replay = Replay(actor, found)
    collector = iter(SyncCollector(theirs, replay, config.steps_per_batch, CPU))
    replay.t = 0  # it tried the policy
    names = list(entries(ours.base_env))
    for batch, without in zip(found, plain, strict=True):
        reference = next(collector)
        commit_normalization(theirs)
        assert set(batch.keys(True, True)) == set(reference.keys(True, True))
        added = {path for key in names for path in ((RAW, key), ("next", RAW, key))}
        assert set(batch.keys(True, True)) - set(without.keys(True, True)) == added
        for key in without.keys(True, True):
            assert torch.equal(batch[key], without[key]), key
        for key in added:
            assert batch[key].dtype == reference[key].dtype, key
            assert torch.equal(batch[key], reference[key]), key
    assert sum(batch["next", "done"].sum() for batch in found) > 0


def test_the_statistics_make_of_them_what_the_policy_sees() -> None:
    config = composed(*CASES["entries"])
    env = seeded(config)
    (norm,) = observation_norms(env)
    actor = config.policy.build(env, CPU).actor
    carry_state(env, actor)
    keep_raw(env)
    batch = next(iter(config.collector.build(env, actor, Source(config.env, config.policy, 0, True), CPU)))
    for part in (batch, batch["next"]):
        for key, loc in norm.parts(norm.loc).items():
            expected = ((part[RAW, key] - loc) / norm.parts(norm.scale)[key]).clamp(-norm.clip, norm.clip).float()
            assert torch.equal(part[key], expected)


def test_they_have_no_place_among_the_transforms_that_are_saved() -> None:
    """So that a checkpoint's environment is built from its config alone, and other losses begin with its statistics."""
    env, other = (seeded(composed(*CASES["array"])) for _ in range(2))
    before = transforms_state(env)
    keep_raw(env)
    after = transforms_state(env)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before if isinstance(before[name], torch.Tensor))
    observation_norms(other)[0].loc.zero_()
    load_transforms_state(other, after)
    load_transforms_state(env, before)
    assert torch.equal(observation_norms(other)[0].loc, observation_norms(env)[0].loc)
