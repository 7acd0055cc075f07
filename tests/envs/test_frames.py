"""Frames stacked by torchrl's ``CatFrames``: each episode's own, through evaluations and a resume."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import parts
import pytest
import torch
from agents import composed

from rlexp import Trainer
from rlexp.collectors.sync import SyncCollector
from rlexp.seeding import load_rng_state
from rlexp.training.state import load_state, state_of

SMALL = [
    *("env.num_envs=4", "collector.frames_per_batch=64", "minibatch_size=32", "num_epochs=1", "total_frames=256"),
    *("env.init_random_steps=16", "evaluation.episodes=2", "evaluation.interval=64", "logger=none", "threads=1"),
    *("policy.actor_keys=[camera]", "policy.critic_keys=[camera]", "device=cpu"),
]
STACK = "env.transforms.stack={_target_: torchrl.envs.CatFrames, N: 3, dim: -3, in_keys: [camera]}"
ARGUMENTS = [*parts.ENV, *parts.SMALL_CNN, *SMALL, STACK]


def test_a_stack_holds_the_newest_frames_of_its_episode(tmp_path: Path) -> None:
    trainer = Trainer(composed(*ARGUMENTS), tmp_path)
    assert type(trainer.collector) is SyncCollector
    batches = [trainer.collect() for _ in range(2)]
    trainer.close()
    seen = torch.cat([batch["camera"] for batch in batches], 1).numpy()
    done = torch.cat([batch["next", "done"] for batch in batches], 1)[..., 0].numpy()
    assert seen.shape == (4, 32, 3, 8, 8)
    assert done.any()
    for env, t in np.ndindex(4, 31):
        older, newest = seen[env, t + 1, :2], seen[env, t + 1, 2]
        expected = [newest, newest] if done[env, t] else seen[env, t, 1:]  # a first frame fills the stack
        assert np.array_equal(older, expected)
        assert not np.array_equal(newest, seen[env, t, 2])


@pytest.mark.parametrize(
    "collector", [[], ["collector=multi_sync", "collector.num_workers=2"]], ids=["sync", "workers"]
)
def test_it_goes_on_from_its_state_to_the_bit(collector: list[str], tmp_path: Path) -> None:
    config = composed(*ARGUMENTS, *collector)
    whole = Trainer(config, tmp_path / "whole")
    whole.save()  # a checkpoint before the first batch
    for _ in range(2):  # each evaluated: torchrl's clones of the transform share a buffer
        whole.iterate()
    state = copy.deepcopy(state_of(whole))
    resumed = Trainer(config, tmp_path / "resumed")
    load_state(resumed, state)
    found = [resumed.iterate() for _ in range(2)]
    load_rng_state(state.rng)
    assert found == [whole.iterate() for _ in range(2)]
    for trainer in (whole, resumed):
        trainer.close()
    assert torch.equal(whole.learner.weights, resumed.learner.weights)
