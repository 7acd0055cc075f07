"""The steps of an update as one CUDA graph against the steps themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from agents import ppo_learner
from graphs import emulate

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.kernels.cuda_graph import GraphedStep

SMALL = [
    *("env=inverted_pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=32"),
    *("env.init_random_steps=16", "evaluation.episodes=1", "logger=none", "threads=1", "device=cpu"),
    *("policy.num_cells=[8]", "num_epochs=3", "total_frames=128"),
]
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
    ppo_learner(graphed)._graph = GraphedStep(ppo_learner(graphed).step)
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
        ([], "needs a GPU, and the device is cpu"),
        (
            ["loss=any", "loss.loss_module._target_=torchrl.objectives.ClipPPOLoss"],
            "a shipped loss",
        ),
        (["kernels=false"], "needs kernels=auto"),
        (["policy=gru"], "needs a feed-forward policy"),
        (["optim=any", "optim.optimizer._target_=torch.optim.Adafactor"], "Adafactor has none"),
    ],
)
def test_a_cuda_graph_that_cannot_be_is_refused(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        Trainer.from_config(load_config([*SMALL, "cuda_graph=true", *overrides]), tmp_path)
    assert raised.value.problems[0].key == "cuda_graph"
