"""``experiment=debug`` passes what is well made, and reports what is wrong with what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import launch, only_run, rows_of, run_command

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.envs import EnvConfig
from rlexp.runs import checkpoint
from rlexp.training.checks import check_env

MODULE = """
import gymnasium
import numpy as np
import torch
from torch import nn


class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    noise = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-2, 2, 2)
        return self.position.copy(), {}

    def step(self, action):
        noise = 0 if self.noise is None else self.noise.normal(size=2)
        self.position = np.clip(self.position + 0.2 * action + noise, -10, 10)
        return self.position.copy(), -float(np.linalg.norm(self.position)), False, False, {}


class Unseeded(Reach):
    noise = np.random.default_rng()


class Shared(Reach):
    noise = np.random


class Forgetful(nn.Module):
    # What it acts by is no parameter and no buffer.
    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.calls = 0

    def forward(self, observation):
        self.calls += 1
        return self.linear(observation) * (1 + self.calls)


class Rooted(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, observation):
        return self.linear(observation) + 0 * torch.sqrt(0 * self.linear(observation))


gymnasium.register("Reach-v0", Reach, max_episode_steps=30)
gymnasium.register("Unseeded-v0", Unseeded, max_episode_steps=30)
gymnasium.register("Shared-v0", Shared, max_episode_steps=30)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def test_preset_takes_every_path_of_a_run(folder: Path) -> None:
    done = run_command("rlexp-train", "experiment=debug", "env=gym", "env.id=mine:Reach-v0", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = only_run(folder)
    assert ["eval/return" in row for row in rows_of(run)] == [False, True, True]
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert checkpoint.load(run / "checkpoints" / "best").state.frames in (960, 1440)
    assert not list(run.glob("wandb"))
    assert "Checks passed: " in done.stderr
    assert "\033" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "code", "reported"),
    [
        (["env.id=mine:Unseeded-v0"], 2, "differs for the same seed and the same actions"),
        (["env.id=mine:Shared-v0"], 2, "differs for the same seed and the same actions"),
        (
            ["env.id=mine:Reach-v0", "policy.actor_network._target_=mine.Forgetful", "kernels=false"],
            1,
            "neither parameter nor buffer",
        ),
        (["env.id=mine:Reach-v0", "policy.actor_network._target_=mine.Rooted"], 1, "SqrtBackward0"),
    ],
    ids=["unseeded", "shared", "forgetful", "nan"],
)
def test_what_is_wrong_is_reported(overrides: list[str], code: int, reported: str, folder: Path) -> None:
    small = ["total_frames=480", "num_epochs=1", "evaluation.episodes=1", "policy.num_cells=[8]"]
    process = launch(["experiment=debug", "env=gym", *small, *overrides], folder, PYTHONPATH=str(folder))
    process.join(60)
    printed = (folder / "output.txt").read_text()
    assert process.exitcode == code, printed
    assert reported in printed


def slider(kind: str) -> EnvConfig:
    return load_config(["env=torchrl", f"env.make={{_target_: slider.{kind}, num_envs: 4}}", "env.num_envs=4"]).env


def test_a_batch_that_restarts_all_rows_for_one_is_reported() -> None:
    with pytest.raises(ConfigError, match="restarts all of its rows when the episode of one ends"):
        check_env(slider("Together"))


@pytest.mark.parametrize("kind", ["Slider", "Noisy"])
def test_one_that_restarts_the_rows_of_the_mask_is_not(kind: str) -> None:
    check_env(slider(kind))


def test_checks_change_nothing(tmp_path: Path) -> None:
    runs = {checks: tmp_path / str(checks) for checks in (True, False)}
    for checks, path in runs.items():
        Trainer(load_config(["experiment=debug", f"checks={checks}", "total_frames=960", "num_epochs=1"]), path).fit()
    assert rows_of(runs[True]) == rows_of(runs[False])
