"""Videos of evaluations during training: they are there, and training is as if they were not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, only_run, rows_of, run_command
from readers import checkpoint_hashes, video_frames, wandb_rows

from rlexp import Trainer, load_config
from rlexp.agent.video import EpisodeRecorder, VideoError
from rlexp.cli.train import train
from rlexp.config import ConfigError

RECORDED = [*TINY, "evaluation.video_interval=512"]
BRIEF = [*TINY, "total_frames=256", "evaluation.video_interval=256", "evaluation.episodes=1", "logger=none"]


@pytest.mark.usefixtures("egl")
def test_videos_are_recorded_and_change_nothing(tiny_run: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-train", *RECORDED, "seed=7", "logger.mode=offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert rows_of(run) == rows_of(tiny_run)
    assert checkpoint_hashes(run) == checkpoint_hashes(tiny_run)

    names = ["000000000512_seed7.mp4", "000000001024_seed7.mp4"]
    assert sorted(path.name for path in (run / "videos").iterdir()) == names
    shown = run_command("rlexp-eval", f"checkpoint={run}", "episodes=1", cwd=tmp_path)
    (length,) = json.loads(shown.stdout.splitlines()[-1])["lengths"]
    assert len(video_frames(run / "videos" / names[1])[1]) == length + 1  # the first episode that an evaluation has

    (offline,) = run.glob("wandb/offline-run-*")
    rows = wandb_rows(offline)
    assert [row["frames"] for row in rows] == [256, 512, 768, 1024]
    copied = {row["frames"]: offline / "files" / row["eval/video.path"] for row in rows if "eval/video.path" in row}
    assert [copied[frames].read_bytes() for frames in (512, 1024)] == [
        (run / "videos" / name).read_bytes() for name in names
    ]
    assert [{k: v for k, v in row.items() if not k.startswith("eval/video")} for row in rows] == rows_of(
        run, timings=True
    )


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize(
    "overrides",
    [
        ["env=hopper", "policy=gru", "env.max_episode_steps=5"],
        ["env=dm_control", "env.domain=cartpole", "env.task=swingup", "env.max_episode_steps=5"],
        ["env=cartpole", "policy=categorical", "env.transforms.step_counter.max_steps=5"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_kind_is_recorded(overrides: list[str], tmp_path: Path) -> None:
    # A process of its own: Gymnasium's and dm_control's images do not share one.
    done = run_command("rlexp-train", *BRIEF, *overrides, cwd=tmp_path, MUJOCO_GL="egl")
    assert done.returncode == 0, done.stderr
    videos = sorted((only_run(tmp_path) / "videos").iterdir())
    assert len(videos) == 1
    assert 1 < len(video_frames(videos[0])[1]) <= 6
    done = run_command("rlexp-eval", f"checkpoint={only_run(tmp_path)}", "video=true", cwd=tmp_path, MUJOCO_GL="egl")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout.splitlines()[-1])["video"]).is_file()


@pytest.mark.usefixtures("egl")
def test_a_video_that_fails_is_announced_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise VideoError("the encoder died")

    monkeypatch.setenv("MUJOCO_GL", "egl")
    trainer = Trainer(load_config([*RECORDED, "logger=none"]), tmp_path)
    monkeypatch.setattr("rlexp.training.evaluator.recorded", broken)
    assert trainer.fit()["status"] == "completed"
    assert "No video after 512 frames: the encoder died" in (tmp_path / "train.log").read_text()


@pytest.mark.usefixtures("egl")
def test_a_video_of_the_same_name_is_not_taken_for_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    earlier = tmp_path / "videos" / "000000000256_seed7.mp4"
    earlier.parent.mkdir()
    earlier.write_bytes(b"of an earlier run")
    trainer = Trainer(load_config([*BRIEF, "seed=7"]), tmp_path)
    monkeypatch.setattr(EpisodeRecorder, "_finish", lambda self: None)  # as where no simulator is reset
    assert trainer.fit()["status"] == "completed"
    assert f"No video after 256 frames: {earlier} was not written" in (tmp_path / "train.log").read_text()


def test_what_cannot_be_rendered_is_reported_before_training(tmp_path: Path) -> None:
    done = run_command("rlexp-train", *RECORDED, cwd=tmp_path, MUJOCO_GL="glfw", DISPLAY="")
    assert done.returncode == 2, done.stderr
    assert "evaluation.video_interval" in done.stderr
    assert "MUJOCO_GL=egl" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_an_environment_that_renders_nothing_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Blind(PendulumEnv):\n"
        "    metadata = {'render_modes': []}\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "gymnasium.register('Blind-v0', Blind, max_episode_steps=20)\n"
    )
    done = run_command("rlexp-train", "env=gym", "env.id=blind:Blind-v0", *RECORDED, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "evaluation.video_interval" in done.stderr
    assert "its constructor takes no render_mode" in done.stderr


def test_a_missing_encoder_is_reported_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'rlexp\[video\]'") as raised:
        train(RECORDED)
    assert raised.value.problems[0].key == "evaluation.video_interval"
    assert list(tmp_path.iterdir()) == []
