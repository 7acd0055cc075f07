"""Trainers in a program or notebook of the user's own: side by side, interrupted, used again, in a thread."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from agents import SMALL, composed
from commands import rows_of
from gymnasium.envs.classic_control import CartPoleEnv

from rlexp import Trainer, load_policy
from rlexp.agent.evaluation import Evaluation
from rlexp.callbacks import Callback, Training
from rlexp.cli.export import export
from rlexp.runs import checkpoint, store
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.seeding import seed_everything
from rlexp.training.trainer import TrainerEndedError


def hashes(run: Path) -> list[float]:
    return [row["train/parameters_hash"] for row in rows_of(run)]


def test_trainers_side_by_side_are_the_runs_of_their_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        Trainer(composed(*SMALL, f"seed={seed}"), tmp_path / f"alone_{seed}").fit()
    both = [Trainer(composed(*SMALL, f"seed={seed}"), tmp_path / f"beside_{seed}") for seed in (0, 1)]
    found: list[list[float]] = [[], []]
    for _ in range(2):
        for trainer, of_it in zip(both, found, strict=True):
            torch.randn(3), np.random.rand(3)
            of_it.append(trainer.iterate()["train/parameters_hash"])
            load_policy(trainer.save())
    for seed, trainer in enumerate(both):
        trainer.fit()
        assert found[seed] + hashes(tmp_path / f"beside_{seed}") == hashes(tmp_path / f"alone_{seed}")


@pytest.mark.parametrize("policy", [[], ["policy=gru", "policy.hidden_size=8", "policy.sequence_length=8"]])
def test_it_is_float32_whatever_the_default_is(policy: list[str], tmp_path: Path) -> None:
    Trainer(composed(*SMALL, *policy), tmp_path / "usual").fit()
    observation = np.ones(9, np.float32)
    expected = load_policy(tmp_path / "usual")(observation)
    torch.set_default_dtype(torch.float64)
    try:
        Trainer(composed(*SMALL, *policy), tmp_path / "wide").fit()
        assert hashes(tmp_path / "wide") == hashes(tmp_path / "usual")
        found = load_policy(tmp_path / "wide")(observation)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_loading_a_policy_draws_nothing(tmp_path: Path) -> None:
    Trainer(composed(*SMALL), tmp_path).fit()
    numbers = []
    for load in (lambda: None, lambda: load_policy(tmp_path)):
        seed_everything(3)
        load()
        numbers.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert numbers[0] == numbers[1]


def test_simulators_of_a_loaded_or_exported_policy_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [*SMALL, "env=cartpole", "evaluation.episodes=3", "env.num_workers=1"]
    Trainer(composed(*small), tmp_path).fit()
    closed: list[CartPoleEnv] = []
    monkeypatch.setattr(CartPoleEnv, "close", lambda self: closed.append(self))
    load_policy(tmp_path)
    assert len(closed) == 3
    monkeypatch.setattr("rlexp.agent.export.export_policy", Mock(side_effect=OSError("elsewhere")))
    with pytest.raises(OSError, match="elsewhere"):
        export([f"checkpoint={tmp_path}", "format=torch"])
    assert len(closed) == 6


def test_trainers_in_threads_are_the_runs_of_their_seeds(tmp_path: Path) -> None:
    def train(name: str, seed: int) -> None:
        drawing = [f"callbacks.counts._target_={__name__}.Counts", "checkpoint.interval=64", "evaluation.interval=128"]
        Trainer(composed(*SMALL, *drawing, "total_frames=1280", f"seed={seed}"), tmp_path / f"{name}_{seed}").fit()

    for seed in (0, 1):
        train("alone", seed)
    threads = [threading.Thread(target=train, args=("beside", seed)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        alone, beside = tmp_path / f"alone_{seed}", tmp_path / f"beside_{seed}"
        assert hashes(beside) == hashes(alone)
        texts = [(run / "train.log").read_text() for run in (alone, beside)]
        assert [text.count("frames: evaluation return") for text in texts] == [10, 10], "each has its own messages"


def test_one_that_has_ended_says_how_to_go_on(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL), tmp_path)
    trainer.stop()
    assert trainer.fit()["status"] == "stopped"
    other = Trainer.resume(tmp_path)  # which has the folder now
    for again in (trainer.fit, trainer.iterate, trainer.save):
        with pytest.raises(TrainerEndedError, match=r"has ended(.|\n)*Trainer\.resume"):
            again()
    with pytest.raises(RunBusyError):
        RunDir(tmp_path).lock()
    summary = other.fit()
    assert summary["status"] == "completed"
    assert other.fit() == summary, "nothing is left to do"


def test_one_that_was_interrupted_in_a_batch_says_how_to_go_on(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL), tmp_path)
    trainer.iterate()
    trainer.save()

    def interrupted() -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    trainer._batches = interrupted()
    with pytest.raises(KeyboardInterrupt):
        trainer.iterate()
    for again in (trainer.iterate, trainer.fit, lambda: next(iter(trainer))):
        with pytest.raises(TrainerEndedError, match="interrupted in the middle of a batch"):
            again()
    trainer.close()
    assert Trainer.resume(tmp_path).fit()["frames"] == 192


class Counts(Callback):
    """Counts checkpoints, and draws at each."""

    def __init__(self) -> None:
        self.checkpoints = 0

    def at_checkpoint(self, trainer: Training, path: Path) -> None:
        """Count it."""
        self.checkpoints += 1
        torch.randn(self.checkpoints)

    def state(self) -> dict[str, Any]:
        """The count."""
        return {"checkpoints": self.checkpoints}

    def load_state(self, state: dict[str, Any]) -> None:
        """The count."""
        self.checkpoints = state["checkpoints"]


def test_what_a_callback_does_at_a_checkpoint_is_as_in_a_run_that_never_stopped(tmp_path: Path) -> None:
    overrides = [*SMALL, "checkpoint.interval=64", f"callbacks.counts._target_={__name__}.Counts"]
    counts = []
    for name, frames in (("whole", 192), ("cut", 64)):
        trainer = Trainer(composed(*overrides, f"total_frames={frames}", "optim.schedule=constant"), tmp_path / name)
        trainer.fit()
    Trainer.resume(tmp_path / "cut", ["total_frames=192", f"trust=[{__name__.partition('.')[0]}]"]).fit()
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    for name in ("whole", "cut"):
        saved = checkpoint.load(tmp_path / name)
        counts.append(saved.state.callbacks["counts"])
        assert saved.state.unverified, "what it does is not known to be exact"
    assert counts[0] == counts[1] == {"checkpoints": 3}


def test_a_run_that_goes_back_past_its_best_checkpoint_has_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([100.0, 10.0, 200.0, 5.0])
    monkeypatch.setattr(
        "rlexp.training.evaluator.evaluate",
        lambda *_, **__: Evaluation(seeds=[0], returns=[next(scores)], lengths=[1]),
    )
    overrides = [*SMALL, "evaluation.interval=64", "checkpoint.interval=64", "checkpoint.keep_last=2"]
    Trainer(composed(*overrides), tmp_path).fit()
    assert [path.name for path in store.saved(tmp_path / "checkpoints")] == ["000000000128", "000000000192"]
    with caplog.at_level(logging.WARNING, "rlexp"):
        trainer = Trainer.resume(tmp_path / "checkpoints" / "000000000128")
    assert "counted anew" in caplog.text
    trainer.fit()
    assert checkpoint.load(tmp_path / "checkpoints" / "best").state.frames == 128
    assert json.loads((tmp_path / "summary.json").read_text())["best"]["eval/return"] == 10.0


def test_a_run_in_a_thread_leaves_signals_alone_and_its_log_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rlexp"), "level", logging.NOTSET)
    thread = threading.Thread(target=lambda: Trainer(composed(*SMALL), tmp_path).fit())
    thread.start()
    thread.join()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"
    assert "evaluation return" in (tmp_path / "train.log").read_text()
