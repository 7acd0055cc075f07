"""The running average of the actor's weights: its formula, where it acts, and that it resumes bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from agents import composed

from rlexp import Trainer
from rlexp.agent.agent import Agent
from rlexp.agent.evaluation import evaluate
from rlexp.runs import checkpoint

SMALL = [
    *("env=inverted_pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=32"),
    *("env.init_random_steps=16", "evaluation.episodes=2", "evaluation.interval=64", "logger=none", "threads=1"),
    *("policy.num_cells=[8]", "num_epochs=3", "total_frames=256", "optim.lr=1e-2", "device=cpu"),
]
AVERAGE = "evaluation.average=0.6"


def weights_of(actor: torch.nn.Module) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return torch.cat([p.detach().flatten() for p in actor.parameters()]).double().numpy()


def test_it_weighs_each_batch_by_the_decay_to_the_power_of_its_age(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, AVERAGE), tmp_path)
    history = []
    for n, _ in enumerate(trainer, start=1):
        history.append(weights_of(trainer.networks.actor))
        age = 0.6 ** np.arange(n)[::-1]
        expected = (age[:, None] * np.array(history)).sum(0) / age.sum()
        assert trainer.evaluator.average is not None
        np.testing.assert_allclose(weights_of(trainer.evaluator.average.actor), expected, rtol=1e-4, atol=1e-6)
    trainer.close()


def test_it_is_what_is_evaluated_and_what_a_checkpoint_acts_by(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, AVERAGE), tmp_path)
    summary = trainer.fit()
    final = trainer.evaluator.final
    assert final is not None
    agent = Agent(tmp_path)
    assert trainer.evaluator.average is not None
    np.testing.assert_array_equal(weights_of(agent.networks.actor), weights_of(trainer.evaluator.average.actor))
    assert evaluate(agent.env, agent.networks.actor, final.seeds).returns == final.returns
    assert not np.array_equal(weights_of(agent.networks.actor), weights_of(trainer.networks.actor))
    assert summary["average"] == 0.6
    assert checkpoint.load(tmp_path).config["evaluation"]["average"] == 0.6


def test_it_resumes_to_the_bit_and_training_does_not_know_of_it(tmp_path: Path) -> None:
    rows = {}
    for name, settings in (("plain", []), ("whole", [AVERAGE])):
        trainer = Trainer(composed(*SMALL, *settings), tmp_path / name)
        rows[name] = list(trainer)
        trainer.close()
    for plain, averaged in zip(rows["plain"], rows["whole"], strict=True):
        assert {k: v for k, v in plain.items() if k[:4] != "eval"} == {
            k: v for k, v in averaged.items() if k[:4] != "eval"
        }
    part = Trainer(composed(*SMALL, AVERAGE), tmp_path / "part")
    for _ in range(2):
        part.iterate()
    part.save()
    part.close()
    resumed = Trainer.resume(tmp_path / "part")
    assert list(resumed) == rows["whole"][2:]
    resumed.close()


@pytest.mark.parametrize("decay", ["0", "1"])
def test_decays_that_average_nothing_are_refused(decay: str) -> None:
    with pytest.raises(Exception, match=r"evaluation\.average"):
        composed(f"evaluation.average={decay}")
