"""The running average of the actor's weights: its formula, where it acts, and that it resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import composed

from rlexp import Trainer
from rlexp.agent.agent import Agent
from rlexp.agent.evaluation import evaluate
from rlexp.callbacks import Callback, Training
from rlexp.cli.evaluate import evaluate as eval_command
from rlexp.config import ConfigError
from rlexp.runs import checkpoint
from rlexp.training.average import WeightAverage

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


@pytest.mark.parametrize("policy", ["normal", "gru"])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_it_is_what_is_evaluated_and_what_a_checkpoint_acts_by(policy: str, shared: str, tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, AVERAGE, f"policy={policy}", f"policy.shared={shared}"), tmp_path)
    summary = trainer.fit()
    final = trainer.evaluator.final
    assert final is not None
    agent = Agent(tmp_path)
    assert trainer.evaluator.average is not None
    assert agent.averaged
    np.testing.assert_array_equal(weights_of(agent.networks.actor), weights_of(trainer.evaluator.average.actor))
    assert evaluate(agent.env, agent.networks.actor, final.seeds).returns == final.returns
    assert not np.array_equal(weights_of(agent.networks.actor), weights_of(trainer.networks.actor))
    assert summary["weight_average"] == 0.6
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


def test_it_holds_the_weights_that_callbacks_leave(tmp_path: Path) -> None:
    class Halves(Callback):
        def after_update(self, trainer: Training, metrics: dict[str, float]) -> None:
            with torch.no_grad():
                for parameter in trainer.networks.actor.parameters():
                    parameter.mul_(0.5)

    trainer = Trainer(composed(*SMALL, AVERAGE), tmp_path)
    trainer.callbacks["halves"] = Halves()
    trainer.iterate()
    assert trainer.evaluator.average is not None
    np.testing.assert_array_equal(weights_of(trainer.evaluator.average.actor), weights_of(trainer.networks.actor))
    trainer.close()


def test_integers_are_copied_and_what_cannot_be_copied_is_refused() -> None:
    network: Any = torch.nn.Linear(2, 2)
    network.steps = torch.nn.Parameter(torch.tensor(0), requires_grad=False)
    average = WeightAverage(network, 0.9)
    network.steps += 3
    average.update()
    assert dict(average.actor.named_parameters())["steps"] == 3
    with pytest.raises(ConfigError, match=r"evaluation\.average=0\.9\n *the actor's network cannot be copied"):
        WeightAverage(torch.nn.utils.weight_norm(torch.nn.Linear(2, 2)), 0.9)


def test_an_evaluation_and_a_warm_start_say_which_weights_they_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(composed(*SMALL, AVERAGE), tmp_path / "first").fit()
    assert eval_command([f"checkpoint={tmp_path / 'first'}"]) == 0
    text = capsys.readouterr().out
    assert "deterministic policy, weights averaged over batches, 2 episodes" in text
    assert json.loads(text.splitlines()[-1])["weight_average"] == 0.6
    with caplog.at_level("INFO"):
        Trainer(composed(*SMALL, f"warm_start={tmp_path / 'first'}"), tmp_path / "second").close()
    assert "those that were trained, not their average" in caplog.text


@pytest.mark.parametrize("decay", ["0", "1"])
def test_decays_that_average_nothing_are_refused(decay: str) -> None:
    with pytest.raises(Exception, match=r"evaluation\.average"):
        composed(f"evaluation.average={decay}")
