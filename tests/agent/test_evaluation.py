"""What ``rlexp-eval`` says is so, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from commands import run_command
from gymnasium import spaces

from rlexp.agent import Agent, evaluation
from rlexp.agent.evaluation import Evaluation, bootstrap_interval
from rlexp.agent.video import EpisodeRecorder, VideoError
from rlexp.cli.evaluate import evaluate
from rlexp.runs import checkpoint, store
from rlexp.runs.errors import CheckpointError

SEEN = [9310.5, 9150.25, 120.0, 9355.75, 9290.0]


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def refusal_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_statistics_are_those_of_the_standard_library() -> None:
    told = Evaluation([1, 2, 3, 4, 5], SEEN, [1000, 980, 14, 1000, 1000]).statistics()
    assert told["mean_return"] == pytest.approx(statistics.fmean(SEEN))
    assert told["std_return"] == pytest.approx(statistics.stdev(SEEN))
    assert told["median_return"] == statistics.median(SEEN)
    assert (told["min_return"], told["max_return"]) == (120.0, 9355.75)
    assert (told["mean_length"], told["min_length"], told["max_length"]) == (798.8, 14, 1000)
    low, high = told["ci95_return"]
    assert 120 < low < told["mean_return"] < high < 9355.75


def test_one_episode_shows_no_spread() -> None:
    told = Evaluation([1], [5.0], [7]).statistics()
    assert (told["std_return"], told["ci95_return"], told["median_return"]) == (None, None, 5.0)


def test_bootstrap_interval_is_that_of_all_resamples() -> None:
    values = [0.0, 1.0, 3.0, 8.0, 20.0]
    every = sorted(sum(resample) / 5 for resample in itertools.product(values, repeat=5))
    exact = [float(np.quantile(every, q)) for q in (0.025, 0.975)]
    assert bootstrap_interval(values, resamples=40_000) == pytest.approx(exact, abs=0.21)  # means lie 0.2 apart
    narrow = bootstrap_interval(values, confidence=0.5)
    assert exact[0] < narrow[0] < narrow[1] < exact[1]


def test_bootstrap_interval_holds_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    samples = generator.exponential(size=(300, 60))
    intervals = [bootstrap_interval(sample.tolist(), resamples=400) for sample in samples]
    held = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.90 <= held <= 0.98


def test_sampled_episodes_repeat_and_differ_from_deterministic_ones(tiny_run: Path, tmp_path: Path) -> None:
    sampled = ("rlexp-eval", f"checkpoint={tiny_run}", "deterministic=false", "episodes=4")
    first, again = (result_of(run_command(*sampled, cwd=tmp_path)) for _ in range(2))
    assert first == again
    assert (first["deterministic"], first["seed"], len(first["returns"])) == (False, 7, 4)

    agent = Agent(tiny_run)
    modes = evaluation.evaluate(agent.env, agent.networks.actor, first["seeds"])
    assert modes.returns != first["returns"]
    # Sampling scatters actions around the mode: across many episodes of one start the returns differ.
    torch.manual_seed(0)
    several = evaluation.evaluate(agent.env, agent.networks.actor, [5] * 6, deterministic=False)
    assert len(set(several.returns)) == 6
    same = evaluation.evaluate(agent.env, agent.networks.actor, [5] * 6)
    assert same.returns == pytest.approx([same.returns[0]] * 6)


def test_checkpoints_are_named_by_run_by_best_and_by_frames(run_dir: Path) -> None:
    store.point(run_dir / "checkpoints", "best", run_dir / "checkpoints" / "000000000512")
    named = {
        run_dir: 1024,
        run_dir / "checkpoints" / "latest": 1024,
        run_dir / "checkpoints" / "best": 512,
        run_dir / "checkpoints" / "000000000512": 512,
    }
    assert {path: Agent(path).frames for path in named} == named


def altered(run_dir: Path, config: Callable[[dict[str, Any]], Any] = lambda c: None, **state: Any) -> Path:
    """A valid checkpoint that differs from the run's latest in its config or a part of its state."""
    saved = checkpoint.load(run_dir)
    config(saved.config)
    return checkpoint.save(
        run_dir.parent / "altered", dataclasses.replace(saved.state, **state), saved.config, keep_last=2
    )


def test_checkpoint_without_statistics_is_refused(run_dir: Path, tmp_path: Path) -> None:
    path = altered(run_dir, transforms={})
    said = refusal_of(run_command("rlexp-eval", f"checkpoint={path}", cwd=tmp_path))
    assert "no statistics of env.transforms.observation_norm" in said


@pytest.mark.parametrize(
    ("group", "changes", "told"),
    [
        ("env", {"id": "Hopper-v5"}, "observation_norm.loc is [9], and the environment's observation is [11]"),
        ("policy", {"num_cells": [32, 64]}, "0.weight is [64, 9], and [32, 9] is needed"),
        ("policy", {"num_cells": [64]}, "2.weight is [64, 64], and nothing is needed"),
    ],
    ids=["environment", "width", "depth"],
)
def test_checkpoint_that_does_not_fit_is_refused_in_words(
    group: str, changes: dict[str, Any], told: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = altered(run_dir, lambda config: config[group].update(changes))
    with pytest.raises(CheckpointError) as refused:
        evaluate([f"checkpoint={path}"])
    assert capsys.readouterr().out == ""
    assert str(path) in str(refused.value)
    assert told in str(refused.value)


def test_command_line_problems_are_reported_together(tmp_path: Path) -> None:
    done = run_command("rlexp-eval", "checkpont=x", "deterministic=no_way", "device=gpu", "best", cwd=tmp_path)
    assert done.returncode == 2
    for told in ("Did you mean checkpoint?", "deterministic=no_way", "device=gpu", "best\n    cannot be read"):
        assert told in done.stderr


class Colours(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """Three steps an episode; renders an image that grows brighter with every step of it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(1), 0.0, self.steps == 3, False, {}

    def render(self) -> Any:
        return np.full((48, 64, 3), 60 * self.steps, dtype=np.uint8)


def frames_of(video: Path) -> tuple[dict[str, Any], list[Any]]:
    reader = imageio_ffmpeg.read_frames(str(video))
    facts = next(reader)
    width, height = facts["size"]
    return facts, [np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3) for frame in reader]


def test_recorder_writes_the_first_episode_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "videos" / "first.mp4"
    there_when_encoded: list[bool] = []

    def encode(*arguments: Any, **settings: Any) -> Iterator[None]:
        try:
            yield from write_frames(*arguments, **settings)
        finally:  # the encoder, which takes its time, has ended
            there_when_encoded.append(path.exists())

    write_frames = imageio_ffmpeg.write_frames
    monkeypatch.setattr(imageio_ffmpeg, "write_frames", encode)
    env = EpisodeRecorder(Colours(), path)
    for episode in range(2):
        env.reset()
        while not env.step(None)[2]:
            assert path.exists() == (episode == 1)
    env.close()
    assert there_when_encoded == [False]
    facts, frames = frames_of(path)
    assert facts["size"] == (64, 48)
    assert facts["fps"] == 5
    assert [round(float(frame.mean()) / 60) for frame in frames] == [0, 1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["first.mp4"]


def test_recorder_leaves_nothing_of_an_unfinished_episode(tmp_path: Path) -> None:
    env = EpisodeRecorder(Colours(), tmp_path / "first.mp4")
    env.reset()
    env.step(None)
    env.close()
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_an_earlier_evaluation_does_not_count_as_written(tmp_path: Path) -> None:
    (tmp_path / "first.mp4").write_bytes(b"of an earlier evaluation")
    env = EpisodeRecorder(Colours(), tmp_path / "first.mp4")
    env.reset()
    env.step(None)
    with pytest.raises(VideoError, match=r"first.mp4 was not written"):
        env.check()
    while not env.step(None)[2]:
        pass
    env.check()


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Ant-v5"])
def test_the_camera_follows_a_robot_and_is_what_it_was_afterwards(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    simulator = gymnasium.make(task, render_mode="rgb_array", max_episode_steps=3)
    robot: Any = simulator.unwrapped
    env = EpisodeRecorder(simulator, tmp_path / "first.mp4")
    env.reset(seed=0)
    before = robot.mujoco_renderer.camera_id
    ended = False
    while not ended:
        robot.data.qpos[0] += 10
        ended = env.step(env.action_space.sample())[3]
    assert robot.mujoco_renderer.camera_id == before
    env.close()
    _, frames = frames_of(tmp_path / "first.mp4")
    robots = [(frame[..., 0].astype(int) - frame[..., 2] > 40).mean() for frame in frames]  # orange, on a green floor
    assert len(robots) == 4
    assert min(robots) > 0.005


def test_a_recording_needs_images(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no render mode rgb_array"):
        EpisodeRecorder(gymnasium.make("InvertedDoublePendulum-v5"), tmp_path / "first.mp4")


@pytest.mark.usefixtures("egl")
def test_video_shows_the_first_episode_that_was_evaluated(run_dir: Path, tmp_path: Path) -> None:
    plain = result_of(run_command("rlexp-eval", f"checkpoint={run_dir}", cwd=tmp_path))
    recorded = result_of(run_command("rlexp-eval", f"checkpoint={run_dir}", "video=true", cwd=tmp_path))
    assert plain == recorded | {"video": None}
    video = Path(recorded["video"])
    assert video == run_dir / "videos" / "000000001024_seed7.mp4"
    facts, frames = frames_of(video)
    assert facts["size"] == (480, 480)
    assert len(frames) == recorded["lengths"][0] + 1
    assert np.abs(frames[-1].astype(int) - frames[0]).max() > 50  # it moves


def test_video_names_the_remedy_where_nothing_can_be_rendered(run_dir: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-eval", f"checkpoint={run_dir}", "video=true", cwd=tmp_path, MUJOCO_GL="glfw", DISPLAY="")
    said = done.stderr
    assert done.returncode == 1, done.stdout
    assert "MUJOCO_GL=egl" in said
    assert "libegl1" in said
    assert "Traceback" not in said
    assert not list(run_dir.glob("videos/*"))


def test_video_names_the_remedy_where_the_encoder_is_missing(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "imageio_ffmpeg.py").write_text("raise ImportError('hidden')\n")
    path = f"{tmp_path}:{':'.join(sys.path)}"
    done = run_command("rlexp-eval", f"checkpoint={run_dir}", "video=true", cwd=tmp_path, PYTHONPATH=path)
    assert "pip install 'rlexp[video]'" in refusal_of(done)
