"""The inner loop's settings, each loss, estimator, optimizer and schedule in it, from the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import rows_of
from graphs import emulate

from rlexp import Trainer, load_config
from rlexp.cli.train import train
from rlexp.config import ConfigError
from rlexp.kernels.cuda_graph import GraphedStep
from rlexp.runs import checkpoint

SMALL = [
    *("env=inverted_pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=32"),
    *("env.init_random_steps=16", "evaluation.episodes=1", "logger=none", "threads=1", "device=cpu"),
    *("policy.num_cells=[8]", "num_epochs=3", "total_frames=128"),
]
OPTIONS = [
    *(["loss=clip_ppo"], ["loss=kl_ppo"], ["loss=a2c", "num_epochs=1"], ["loss=reinforce", "num_epochs=1"]),
    *(["env=cartpole", f"policy={name}", "loss=kl_ppo"] for name in ("categorical", "gru")),
    ["env=cartpole", "policy=gru", "loss.estimator=vtrace"],
    ["policy=beta", "loss=kl_ppo"],
    *([f"loss.estimator={name}"] for name in ("gae", "td_lambda", "td1", "td0", "vtrace")),
    *([f"optim={name}"] for name in ("adam", "adamw", "rmsprop", "sgd")),
    *([f"optim.schedule={name}"] for name in ("cosine", "linear", "constant", "kl_adaptive")),
    ["optim.schedule={_target_: rlexp.optim.schedules.KLAdaptive, desired_kl: 0.02}"],
    ["optim.critic_lr=1e-3"],
    ["loss.clip_value=0.2", "loss.clip_schedule=linear"],
    ["loss.entropy_coeff=0.01", "loss.entropy_schedule=cosine"],
    ["target_kl=0.01", "recompute_advantage=false"],
]


@pytest.mark.parametrize("overrides", OPTIONS, ids=" ".join)
def test_it_trains_from_the_command(overrides: list[str], tmp_path: Path) -> None:
    assert train([*SMALL, f"hydra.run.dir={tmp_path}", *overrides]) == 0
    rows = rows_of(tmp_path)
    assert [row["frames"] for row in rows] == [64, 128]
    assert rows[0]["train/parameters_hash"] != rows[1]["train/parameters_hash"]
    assert ("loss/beta" in rows[0]) == ("loss=kl_ppo" in overrides)
    assert ("loss/value_clip_fraction" in rows[0]) == ("loss.clip_value=0.2" in overrides)
    assert all(row["loss/kl"] >= 0 for row in rows)


GRAPHED = [
    *([], ["env=cartpole", "policy=categorical"], ["loss=kl_ppo"], ["optim=sgd"], ["optim.critic_lr=1e-3"]),
    *(["optim.schedule=kl_adaptive"], ["policy=normal", "loss.clip_schedule=linear", "loss.entropy_coeff=0.01"]),
]


@pytest.mark.parametrize("overrides", GRAPHED, ids=" ".join)
def test_a_cuda_graph_makes_the_same_steps(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([*SMALL, *overrides])
    plain, graphed = (Trainer.from_config(config, tmp_path / name) for name in ("plain", "graphed"))
    graphs = emulate(monkeypatch)
    graphed.learner._graph = GraphedStep(graphed.learner.step)
    for trainer in (plain, graphed):
        torch.manual_seed(1)
        trainer.iterate()
        trainer.iterate()
        trainer.close()
    assert torch.equal(graphed.learner.weights, plain.learner.weights)
    # The first three of an update's six steps are no graph's in the first; a new rate after an epoch needs another.
    assert len(graphs) == (5 if "optim.schedule=kl_adaptive" in overrides else 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("overrides", [*GRAPHED, ["optim=rmsprop"], ["policy=beta"]], ids=" ".join)
def test_a_gpu_captures_the_steps(overrides: list[str], tmp_path: Path) -> None:
    weights, start = [], None
    for graph in ("false", "true"):
        config = load_config([*SMALL, *overrides, "device=cuda", f"cuda_graph={graph}"])
        trainer = Trainer.from_config(config, tmp_path / graph)
        start = trainer.learner.weights.detach().clone()
        trainer.iterate()
        trainer.iterate()
        trainer.close()
        weights.append(trainer.learner.weights.detach())
    assert start is not None
    assert (weights[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "needs a GPU, and device=cpu is cpu"),
        (["loss=any", "loss.loss_module._target_=torchrl.objectives.ClipPPOLoss"], "needs a shipped loss"),
        (["policy=gru"], "needs a policy without a memory"),
        (["optim=any", "optim.optimizer._target_=torch.optim.Adafactor"], "Adafactor has none"),
    ],
)
def test_a_cuda_graph_that_cannot_be_is_refused(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        Trainer.from_config(load_config([*SMALL, "cuda_graph=true", *overrides]), tmp_path)
    assert raised.value.problems[0].key == "cuda_graph"


def updated(folder: Path, *overrides: str) -> tuple[Trainer, dict[str, float]]:
    trainer = Trainer.from_config(load_config([*SMALL, *overrides]), folder)
    metrics = trainer.update(trainer.collect())
    trainer.close()
    return trainer, metrics


def test_epochs_end_by_target_kl(tmp_path: Path) -> None:
    _, whole = updated(tmp_path / "whole", "optim.lr=1e-2")
    _, stopped = updated(tmp_path / "stopped", "optim.lr=1e-2", "target_kl=1e-6")
    _, free = updated(tmp_path / "free", "optim.lr=1e-2", "target_kl=1e6")
    assert (stopped["optim/epochs"], free["optim/epochs"]) == (1, 3)
    assert free == whole
    _, one = updated(tmp_path / "one", "optim.lr=1e-2", "num_epochs=1")
    assert stopped == one
    assert stopped["loss/kl"] > 1e-6


def test_advantage_is_recomputed_or_not(tmp_path: Path) -> None:
    calls: dict[bool, int] = {}
    for recompute in (True, False):
        overrides = [*SMALL, f"recompute_advantage={recompute}"]
        trainer = Trainer.from_config(load_config(overrides), tmp_path / str(recompute))
        found: list[torch.Tensor] = []
        trainer.learner.advantage.register_forward_hook(lambda m, i, batch, found=found: found.append(batch))
        trainer.update(trainer.collect())
        trainer.close()
        calls[recompute] = len(found)
    assert calls == {True: 3, False: 1}


@pytest.mark.parametrize("setting", ["target_kl=0.01", "optim.schedule=kl_adaptive"])
def test_following_the_kl_needs_a_loss_that_tells_it(setting: str, tmp_path: Path) -> None:
    torchrl = "loss.loss_module._target_=torchrl.objectives"
    experiment = load_config([*SMALL, "loss=any", f"{torchrl}.A2CLoss", "num_epochs=1", setting])
    with pytest.raises(ConfigError, match="measures the KL"):
        Trainer(experiment, tmp_path / "a2c")
    _, metrics = updated(tmp_path / "ppo", "loss=any", f"{torchrl}.ClipPPOLoss", setting)
    assert "loss/kl" in metrics


def test_epochs_without_an_importance_ratio_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    updated(tmp_path / "one", "loss=a2c", "num_epochs=1")
    assert "importance ratio" not in caplog.text
    updated(tmp_path / "three", "loss=a2c", "num_epochs=3")
    assert "no importance ratio" in caplog.text


def coefficients(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.learner.minibatch_loss.coefficients.items()}


def test_annealed_coefficients_are_where_they_would_be_had_the_run_always_been_so_long(tmp_path: Path) -> None:
    annealed = ["loss.clip_schedule=linear", "loss.entropy_coeff=0.01", "loss.entropy_schedule=linear"]
    assert train([*SMALL, *annealed, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    last = checkpoint.load(tmp_path / "run").state.loss
    assert last["clip_epsilon"].item() == pytest.approx(0.2 * 1 / 2)
    assert train([f"resume={tmp_path / 'run'}", "total_frames=256"]) == 0
    last = checkpoint.load(tmp_path / "run").state.loss
    assert last["clip_epsilon"].item() == pytest.approx(0.2 * 1 / 4)
    assert last["entropy_coeff"].item() == pytest.approx(0.01 * 1 / 4)


def test_annealing_reaches_the_objective(tmp_path: Path) -> None:
    trainer, _ = updated(tmp_path, "loss.clip_schedule=linear", "total_frames=256")
    assert coefficients(trainer)["clip_epsilon"] == pytest.approx(0.2)
    trainer.learner.objective.anneal(0.75)
    batch = trainer.collect()
    trainer.learner.minibatch_loss.prepare(batch)
    ratios: Any = torch.tensor([[1.04, 1.06, 0.96, 0.94]])
    assert trainer.learner.minibatch_loss.means({"log_weight": ratios.log()})["clip_fraction"].item() == 0.5
