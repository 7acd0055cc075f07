"""``rlexp-verify`` tells a run that can be run again from one that cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, run_command

from rlexp import Trainer, load_config
from rlexp.cli.verify import verify
from rlexp.config import ConfigError
from rlexp.experiment import ExperimentConfig
from rlexp.runs import checkpoint
from rlexp.runs.manifest import MANIFEST
from rlexp.training import verify as module


def test_a_run_is_reproducible(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(tiny_run), "iterations=4"]) == 0
    assert "reproducible: 4 iterations" in capsys.readouterr().out


def test_the_first_difference_is_reported(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("wandb", "plots"))
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row["train/parameters_hash"] += 1
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["sessions"].append(metadata["sessions"][0] | {"frames": 768})  # a resume, with today's packages
    metadata["sessions"][0]["versions"] = metadata["versions"] | {"torch": "0.4.1\x1b[2J"}
    (copy / "metadata.json").write_text(json.dumps(metadata))
    assert verify([str(copy), "iterations=1"]) == 0
    assert verify([str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "not reproducible: at 512 frames train/parameters_hash was" in printed
    assert "torch was 0.4.1\\x1b[2J and is" in printed


def test_metadata_without_versions_hides_no_difference(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("wandb", "plots"))
    first, *rest = (copy / "metrics.jsonl").read_text().splitlines()
    strange = json.loads(first) | {"train/\x1b[2J": 1.0}
    (copy / "metrics.jsonl").write_text("\n".join([json.dumps(strange), *rest, ""]))
    metadata = json.loads((copy / "metadata.json").read_text())
    for session in metadata["sessions"]:
        del session["versions"]
    (copy / "metadata.json").write_text(json.dumps(metadata | {"versions": 3}))
    assert verify([str(copy)]) == 1
    assert "train/\\x1b[2J was 1.0" in capsys.readouterr().out


def test_what_a_resume_changed_of_the_machine_is_as_it_was_at_the_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=64", "num_epochs=1", "logger=none"]
    Trainer.from_config(load_config([*small, "total_frames=128", "env.init_random_steps=16", "threads=2"]), run).fit()
    Trainer.resume(run, ["threads=1", "total_frames=192"]).fit()
    verified = []

    class Seen(Trainer):
        def __init__(self, config: ExperimentConfig, *arguments: Any) -> None:
            verified.append(config.threads)
            super().__init__(config, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Trainer", Seen)
        assert module.train_again(run, 10) == 2, "the budget of the third was another"
    assert verified == [2]


def test_a_second_folder_is_refused(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="one run is verified at a time"):
        verify([str(tiny_run), str(tiny_run)])


def test_a_run_without_a_row_cannot_be_repeated(tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("wandb", "plots"))
    (copy / "metrics.jsonl").write_text("")
    done = run_command("rlexp-verify", str(copy), cwd=tmp_path)
    assert (done.returncode, "has no row to compare" in done.stderr) == (2, True)


def test_a_run_that_resumes_exactly(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(tiny_run), "iterations=2", "resume=true"]) == 0
    assert "resumes exactly: 2 iterations" in capsys.readouterr().out


HIDDEN = """
import gymnasium
import numpy as np

STEPS = 0  # of all simulators of the process: no attribute of any of them


class Hidden(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        global STEPS
        STEPS += 1
        return np.zeros(1, np.float32), float(STEPS % 7), False, False, {}


gymnasium.register("Hidden-v0", Hidden, max_episode_steps=10)
"""


def test_state_that_no_checkpoint_holds_is_found_by_experiment(tmp_path: Path) -> None:
    (tmp_path / "hidden.py").write_text(HIDDEN)
    options = ["env=gym", "env.id=hidden:Hidden-v0", "logger=none", "hydra.run.dir=run"]
    done = run_command("rlexp-train", *TINY, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((checkpoint.load(tmp_path / "run").path / MANIFEST).read_text())
    assert manifest["exact_resume"] == "unverified"
    done = run_command("rlexp-verify", "run", "iterations=1", "resume=true", "trust=[hidden]", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "does not resume exactly: at 512 frames" in done.stdout


def test_command_line_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run's folder"):
        verify([str(tmp_path)])
    with pytest.raises(ConfigError, match="Did you mean iterations"):
        verify([str(tmp_path), "iteration=3"])
