"""The loop: what is counted, when statistics move, and what a constructor that fails leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import SMALL, composed
from tensordict import TensorDictBase
from torch import nn

from rlexp import Trainer
from rlexp.callbacks import Callback, Training
from rlexp.config import ConfigError
from rlexp.envs.normalization import observation_norms
from rlexp.runs.rundir import RunDir
from rlexp.training.checks import check_actor
from rlexp.training.finite import TrainingError


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


class Adds(Callback):
    """Adds one metric."""

    def __init__(self, key: str, value: Any) -> None:
        self.key, self.value = key, value

    def after_update(self, trainer: Training, metrics: dict[str, Any]) -> None:
        """Add it."""
        metrics[self.key] = self.value


@pytest.mark.parametrize("value", [np.float32(1.5), torch.tensor(1.5), 1.5], ids=str)
def test_what_a_callback_adds_is_logged_as_a_number(value: Any, tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "env=hopper"), tmp_path)
    trainer.callbacks["mine"] = Adds("mine/metric", value)
    assert json.loads(json.dumps(trainer.iterate()))["mine/metric"] == 1.5
    trainer.close()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("mine", float("nan"), "callbacks.mine adds the metric mine, which is nan at 64 frames"),
        ("mine", "much", "which is no number: 'much'"),
        ("frames", 7, "a name of rlexp's own"),
        ("train/reward", 7.0, "a name of rlexp's own"),
        ("loss/objective", 7.0, "callbacks.mine changes the metric loss/objective"),
    ],
)
def test_what_no_metric_can_be_is_blamed_on_its_callback(key: str, value: Any, said: str, tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "env=hopper"), tmp_path)
    trainer.callbacks["mine"] = Adds(key, value)
    with pytest.raises(TrainingError, match=said):
        trainer.iterate()
    trainer.close()


def test_a_callback_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks.mine=Counter\n    is no rlexp.callbacks.Callback"):
        Trainer(composed(*SMALL, "callbacks.mine._target_=collections.Counter"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["policy.actor_network={_target_: torchrl.modules.MLP, num_cells: [8], dropout: 0.2}"],
            "The actor has Dropout",
        ),
        (["env.transforms.skip={_target_: torchrl.envs.FrameSkipTransform, frame_skip: 4}"], "use env.frame_skip"),
    ],
    ids=["dropout", "frame_skip"],
)
def test_what_would_be_wrong_in_silence_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Trainer(composed(*SMALL, "env=pendulum", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3), nn.Dropout(), nn.LSTM(3, 3, num_layers=2, dropout=0.1)],
    ids=["batch_norm", "dropout", "lstm"],
)
def test_an_actor_that_is_another_in_evaluation_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=f"The actor has {type(layer).__name__}"):
        check_actor(nn.Sequential(nn.Linear(3, 3), layer))
    check_actor(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.LSTM(3, 3)))
