"""What may change when a run is resumed, what may not, and what begins anew."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import TINY, rows_of
from gymnasium.envs.classic_control import PendulumEnv

from rlexp import Trainer, load_config
from rlexp.cli.train import train
from rlexp.config import ConfigError, load
from rlexp.optim import AdamConfig
from rlexp.optim.schedules import load_schedule
from rlexp.optim.weights import flatten
from rlexp.runs import checkpoint, store
from rlexp.runs.errors import CheckpointError
from rlexp.runs.manifest import MANIFEST
from rlexp.runs.resume import Start, changed, open_command
from rlexp.training.learners.ppo import PPOLearner


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may continue."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb")))


def resumed(run: Path, *overrides: str) -> Start:
    arguments = [f"resume={run}", *overrides]
    return open_command(load(arguments), arguments)


def test_what_decides_what_is_learned_cannot_change(run: Path) -> None:
    changes = ["env=hopper", "env.num_envs=8", "policy.num_cells=[32]", "loss.gamma=0.9", "seed=8", "optim.lr=1e-3"]
    changes += ["evaluation.average=0.9"]
    with pytest.raises(ConfigError) as raised:
        resumed(run, *changes)
    said = str(raised.value)
    for line in (
        *("env.id=Hopper-v5", "it was InvertedDoublePendulum-v5", "env.num_envs=8", "it was 4", "seed=8", "it was 7"),
        *("policy.num_cells=[32]", "it was [64, 64]", "loss.gamma=0.9", "it was 0.99", "optim.lr=0.001"),
        "evaluation.average=0.9",
    ):
        assert line in said
    assert train([f"resume={run}", "total_frames=1024"]) == 0


def test_a_misspelt_change_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean total_frames"):
        resumed(run, "total_frame=2048")


def test_the_rest_may(run: Path) -> None:
    changes = ["logger=none", "evaluation.episodes=2", "checkpoint.interval=256", "checkpoint.keep_last=3", "threads=1"]
    changes += ["compile=false", "env.num_workers=2"]
    start = resumed(run, *changes, "total_frames=1536")
    assert start.checkpoint is not None
    before, after = start.checkpoint.config, start.config.to_dict()
    assert {key for key in after if before[key] != after[key]} == {
        *("logger", "evaluation", "checkpoint", "threads", "compile", "total_frames", "env"),
    }
    Trainer(start.config, start.run, start.checkpoint).fit()
    assert [row["frames"] for row in rows_of(run)] == [256, 512, 768, 1024, 1280, 1536]
    # Linear to 0 over the new total: the rates that a run of 1536 frames has from 1024 on.
    assert [row["train/lr"] for row in rows_of(run)[-2:]] == pytest.approx([7e-4 / 3, 7e-4 / 6])


@pytest.mark.parametrize(
    "change", ["checks=true", "device=cpu", "cuda_graph=true", "compile=true", "env.backend=gymnasium", "logger=csv"]
)
def test_what_decides_no_result_may_change(change: str, run: Path) -> None:
    start = resumed(run, change, "total_frames=1280")
    start.run.unlock()
    assert start.checkpoint is not None
    before, after = start.checkpoint.config, start.config.to_dict()
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {re.split("[.=]", change)[0], "total_frames"}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_an_extended_schedule_is_where_it_would_be_had_it_always_been_so_long(schedule: Any) -> None:
    def rates(batches: int, steps: int, saved: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
        spec = AdamConfig(lr=0.1, critic_lr=None, schedule=schedule, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
        weights = flatten([torch.nn.Parameter(torch.zeros(2))])
        optimizer, scheduler = spec.build(weights, [], [], batches)
        if saved is not None:
            load_schedule(scheduler, saved)
        used = []
        for _ in range(steps):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return used, scheduler.state_dict()

    _, saved = rates(10, 10)
    extended, _ = rates(20, 10, saved)
    whole, _ = rates(20, 20)
    assert extended == pytest.approx(whole[10:])


def test_an_older_checkpoint_takes_the_run_back(run: Path) -> None:
    older, newest = store.saved(run / "checkpoints")
    trainer = Trainer.resume(older, ["total_frames=1280", "logger=none"])
    assert trainer.run.path == run
    trainer.fit()
    assert [row["frames"] for row in rows_of(run)] == [256, 512, 768, 1024, 1280]
    aside = newest.with_name(f"superseded-{newest.name}")
    assert aside.is_dir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"set aside .* warm_start={aside}"):  # its metrics are of another past
        Trainer.resume(aside)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    sessions = json.loads((run / "metadata.json").read_text())["sessions"]
    assert [(s["frames"], s["total_frames"]) for s in sessions] == [(0, 1024), (int(older.name), 1280)]
    weights = (aside / "tensors.safetensors").read_bytes()
    Trainer.resume(older, ["total_frames=1536", "logger=none"]).fit()
    names = {path.name for path in aside.parent.iterdir() if path.is_dir()}
    assert {aside.name, "superseded-000000001280"} <= names
    assert (aside / "tensors.safetensors").read_bytes() == weights, "what was set aside first is still there"
    for path in aside.parent.glob("superseded-*"):
        assert checkpoint.load(path).path == path


def test_a_name_that_leads_nowhere_is_said(run: Path) -> None:
    (run / "checkpoints" / "best").write_text("000000000099")
    with pytest.raises(CheckpointError, match="best names 000000000099, which is not there"):
        checkpoint.load(run / "checkpoints" / "best")


def test_what_best_names_is_resumed_from(run: Path) -> None:
    older, _ = store.saved(run / "checkpoints")
    (run / "checkpoints" / "best").write_text(older.name)
    with closing(Trainer.resume(run / "checkpoints" / "best", ["total_frames=1280"])) as trainer:
        assert (trainer.run.path, trainer.frames) == (run, int(older.name))


def test_a_run_may_lie_in_a_folder_called_checkpoints(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "mine"
    shutil.copytree(run, place)
    start = resumed(place, "total_frames=1280")
    assert start.run.path == place
    start.run.unlock()
    assert not (tmp_path / ".lock").exists()


def test_a_word_that_is_no_setting_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"500000\n *cannot be read as key=value"):
        resumed(run, "500000")
    with closing(Trainer.resume(run, ["total_frames=1280"])):
        pass  # the folder was left


def test_a_run_is_resumed_in_its_own_folder(run: Path, tmp_path: Path) -> None:
    arguments = [f"resume={run}", f"hydra.run.dir={tmp_path / 'other'}"]
    with pytest.raises(ConfigError, match="which goes on in that folder"):
        open_command(load(arguments), arguments)


def test_an_experiment_in_python_is_not_where_it_goes(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"use rlexp.Trainer.resume(.|\n)*give rlexp.Trainer its run_dir"):
        load_config([f"resume={run}", "hydra.run.dir=mine"])


def test_resume_needs_something_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run's folder nor a checkpoint"):
        resumed(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such folder"):
        resumed(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="needs a folder that is the same each time"):
        open_command(load(["resume=auto"]), ["resume=auto"])


def test_a_warm_start_has_weights_and_statistics_and_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"warm_start={tiny_run}", "logger=none", "seed=3", "optim.lr=1e-4"]
    trainer = Trainer(load_config(overrides), tmp_path / "run")
    saved = checkpoint.load(tiny_run).state
    for name, value in trainer.networks.actor.state_dict().items():
        assert torch.equal(value, saved.actor[name])
    assert torch.equal(trainer.env.transform[0].loc, saved.transforms["transforms.0.loc"])
    first = trainer.collector.state_dict()["observation"]
    raw = torch.from_numpy(trainer.env.base_env.arrays.observation)
    shown = (raw - saved.transforms["transforms.0.loc"]) / saved.transforms["transforms.0.scale"]
    torch.testing.assert_close(first, shown.clamp(-10, 10).float())
    learner = trainer.learner
    assert isinstance(learner, PPOLearner)
    reward_norm = learner.reward_norm
    assert reward_norm is not None
    assert reward_norm.moments.count == 1024
    assert not reward_norm.discounted.any()
    assert (trainer.frames, learner.optimizer.state_dict()["state"]) == (0, {})
    assert learner.scheduler.get_last_lr() == [1e-4]
    trainer.close()
    with pytest.raises(ConfigError, match="warm_start"):
        Trainer(load_config([*overrides, "policy.num_cells=[8]"]), tmp_path / "other")


class Opaque(PendulumEnv):  # type: ignore[misc] # Gymnasium's types are not followed
    """Holds something that cannot be looked into."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.engine = object()


gymnasium.register("Opaque-v0", Opaque, max_episode_steps=20)


def test_a_simulator_that_cannot_be_saved_begins_new_episodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = [*TINY, "env=gym", "env.id=Opaque-v0", "logger=none", "total_frames=512"]
    Trainer(load_config(overrides), tmp_path / "run").fit()
    saved = checkpoint.load(tmp_path / "run")
    manifest = json.loads((saved.path / MANIFEST).read_text())
    assert manifest["exact_resume"] is False
    reason = "Opaque.engine is a object, which cannot be saved"
    assert manifest["inexact"] == [reason, f"in evaluation, {reason}"]
    start = resumed(tmp_path / "run", "total_frames=1024")
    trainer = Trainer(start.config, start.run, start.checkpoint)
    assert "not bit for bit: Opaque.engine" in caplog.text
    assert "Every episode begins afresh" in caplog.text
    for name, value in trainer.networks.actor.state_dict().items():
        assert torch.equal(value, saved.state.actor[name])
    assert isinstance(trainer.learner, PPOLearner)
    adam, saved_adam = trainer.learner.optimizer.state_dict(), saved.state.learner["optimizer"]
    assert adam["state"][0]["step"] == saved_adam["state"][0]["step"]
    (batch,) = itertools.islice(trainer.collector, 1)
    assert batch["next", "step_count"][:, 0].eq(1).all()
    trainer.close()
    Trainer.resume(tmp_path / "run", ["total_frames=1024"]).fit()
    assert [row["frames"] for row in rows_of(tmp_path / "run")] == [256, 512, 768, 1024]


@pytest.mark.parametrize(("first", "then"), [("mujoco", "gymnasium"), ("gymnasium", "mujoco")])
def test_a_run_resumes_with_the_other_backend_to_the_bit(first: str, then: str, tmp_path: Path) -> None:
    overrides = [*TINY, "env=hopper", "logger=none", "optim.schedule=constant", f"env.backend={first}"]
    Trainer(load_config([*overrides, "total_frames=1024"]), tmp_path / "whole").fit()
    Trainer(load_config([*overrides, "total_frames=512"]), tmp_path / "cut").fit()
    Trainer.resume(tmp_path / "cut", [f"env.backend={then}", "total_frames=1024"]).fit()
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


@pytest.mark.parametrize("task", ["Ant-v5", "HalfCheetah-v5", "Pusher-v5", "Pendulum-v1", "MountainCarContinuous-v0"])
@pytest.mark.parametrize("steps", [0, 1, 7, 33])
def test_a_simulator_goes_on_in_another_copy(task: str, steps: int) -> None:
    from rlexp.envs.gymnasium import snapshot

    def play(env: gymnasium.Env[Any, Any], actions: list[Any]) -> list[Any]:
        seen: list[Any] = []
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append((observation.tobytes(), float(reward), terminated, truncated))
            if terminated or truncated:
                seen.append(env.reset()[0].tobytes())
        return seen

    env, copy = (gymnasium.make(task, max_episode_steps=30) for _ in range(2))
    env.reset(seed=1)
    copy.reset(seed=2)
    generator = np.random.default_rng(0)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    actions = [generator.uniform(space.low, space.high).astype(space.dtype) for _ in range(steps + 70)]
    play(env, actions[:steps])
    state = snapshot.get_state(env)
    snapshot.check_state(copy, state)
    snapshot.set_state(copy, state)
    assert play(copy, actions[steps:]) == play(env, actions[steps:])


def test_a_resumed_config_imports_only_what_the_command_line_names(run: Path) -> None:
    (path,) = (run / "checkpoints").glob("*1024")
    state = json.loads((path / "manifest.json").read_text())
    state["config"]["callbacks"] = {"evil": {"_target_": "antigravity.Geohash"}}
    overrides = [f"resume={run}"]
    with pytest.raises(ConfigError, match="is blocked"):
        changed(state["config"], load(overrides), overrides)
    named = [*overrides, "callbacks.evil={_target_: fractions.Fraction}"]
    with pytest.raises(ConfigError, match="cannot change when a run is resumed"):
        changed(state["config"], load(named), named)
    same = [*overrides, "callbacks.evil={_target_: fractions.Fraction}"]
    state["config"]["callbacks"] = {"evil": {"_target_": "fractions.Fraction"}}
    assert changed(state["config"], load(same), same).callbacks["evil"].target == "fractions.Fraction"
