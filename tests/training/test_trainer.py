"""The loop: what is counted, when statistics move, and what a constructor that fails leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from agents import composed
from tensordict import TensorDictBase

from rlexp import Trainer
from rlexp.config import ConfigError
from rlexp.envs.normalization import observation_norms
from rlexp.runs.rundir import RunDir

SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=2", "minibatch_size=16", "num_epochs=1", "total_frames=192"),
    *("env.init_random_steps=16", "evaluation.interval=1_000", "evaluation.episodes=1", "logger=none", "threads=1"),
    *("policy.num_cells=[8]", "env.max_episode_steps=10"),
]


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_frames_are_simulator_frames_and_each_observation_is_counted_once(kernels: str, tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "env=hopper", "env.frame_skip=2", f"kernels={kernels}"), tmp_path)
    (norm,) = observation_norms(trainer.env)
    for iteration in range(1, 4):
        before = norm.loc.clone()
        batch = trainer.collect()
        assert torch.equal(norm.loc, before), "the statistics move after an update, not in a batch"
        assert batch.shape == (2, 16)
        trainer.update(batch)
        assert not torch.equal(norm.loc, before)
        assert norm.moments.count.item() == 16 + 32 * iteration
        assert (trainer.frames, trainer.iteration) == (64 * iteration, iteration)
    assert trainer.finished
    trainer.close()


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_metrics_of_a_batch_are_its_own(kernels: str, tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "env=hopper", f"kernels={kernels}"), tmp_path)
    totals, lengths = [0.0, 0.0], [0, 0]
    for _ in range(2):
        batch = trainer.collect()
        ended: list[tuple[float, int]] = []
        longest = 0
        for env in range(2):
            for t in range(32):
                totals[env] += batch["next", "reward"][env, t].item()
                lengths[env] += 1
                longest = max(longest, lengths[env])
                if batch["next", "done"][env, t]:
                    ended.append((totals[env], lengths[env]))
                    totals[env], lengths[env] = 0.0, 0
        found = trainer.batch_metrics(batch)
        assert found["train/reward"] == pytest.approx(batch["next", "reward"].mean().item())
        assert found["train/step_count"] == longest
        assert found["train/episode_length"] == pytest.approx(sum(length for _, length in ended) / len(ended))
        assert found["train/episode_return"] == pytest.approx(sum(total for total, _ in ended) / len(ended), rel=1e-4)
    trainer.close()


def test_progress_that_anneals_is_that_of_the_batches_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(composed(*SMALL), tmp_path)
    progress: list[float] = []
    update = trainer.learner.update

    def watched(batch: TensorDictBase, share: float) -> dict[str, float]:
        progress.append(share)
        return update(batch, share)

    monkeypatch.setattr(trainer.learner, "update", watched)
    list(trainer)
    trainer.close()
    assert progress == pytest.approx([0, 1 / 3, 2 / 3])


def test_a_constructor_that_fails_leaves_the_folder_unlocked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Trainer(composed(*SMALL, "env=hopper", "policy=categorical"), tmp_path / "run")
    run = RunDir(tmp_path / "run")
    run.lock()
    run.unlock()


def test_stop_ends_a_run_after_the_batch(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL), tmp_path)
    rows = []
    for row in trainer:
        rows.append(row)
        trainer.stop()
    trainer.close()
    assert len(rows) == 1
