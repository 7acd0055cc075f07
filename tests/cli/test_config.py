"""``rlexp-config``, tab completion, and running an experiment again from its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY, clean_environment, only_run, rows_of, run_command

from rlexp.cli.config import config
from rlexp.config import conf_dir, option_text


def test_list_names_every_option_with_a_description(tmp_path: Path) -> None:
    done = run_command("rlexp-config", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    conf = conf_dir()
    lines = done.stdout.splitlines()
    for path in conf.glob("*/**/*.yaml"):
        assert str(path.parent.relative_to(conf)) in lines
        assert any(line.split()[0] == path.stem and len(line.split()) > 3 for line in lines), path
    assert "base_" not in done.stdout
    assert run_command("rlexp-config", "list", "polcy", cwd=tmp_path).returncode == 2


def test_show_tells_what_set_each_value(tmp_path: Path) -> None:
    overrides = ["env=hopper", "loss.clip_epsilon=0.1", "+env.kwargs.forward_reward_weight=2"]
    done = run_command("rlexp-config", "show", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = [line.split("  # ") for line in done.stdout.splitlines()]
    origin = {text.strip(): source[0].strip() if source else None for text, *source in shown}
    assert origin['id: "Hopper-v5"'] == "env/hopper"
    assert origin["num_envs: 16"] == "env/gym"
    assert origin["clip_epsilon: 0.1"] == "loss.clip_epsilon=0.1"
    assert origin["forward_reward_weight: 2"] == "env.kwargs.forward_reward_weight=2"
    assert origin["seed: 0"] == "train"
    assert origin["loss:"] is None
    preset = run_command("rlexp-config", "show", "experiment=tutorial", cwd=tmp_path)
    assert "minibatch_size: 64" in preset.stdout
    assert [line.split("# ")[1] for line in preset.stdout.splitlines() if line.startswith("minibatch_size")] == [
        "experiment/tutorial"
    ]


def test_copy_is_an_option_to_edit(tmp_path: Path) -> None:
    done = run_command("rlexp-config", "copy", "loss/clip_ppo", "conf/loss/mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "conf" / "loss" / "mine.yaml"
    assert copy.read_text() == option_text("loss/clip_ppo")
    assert "gamma: 0.99" in copy.read_text()
    copy.write_text(copy.read_text().replace("clip_epsilon: 0.2", "clip_epsilon: 0.15"))
    shown = run_command("rlexp-config", "show", "seed=3", "--config-dir", "conf", "loss=mine", cwd=tmp_path)
    assert "clip_epsilon: 0.15" in shown.stdout
    assert "seed: 3" in shown.stdout
    again = run_command("rlexp-config", "copy", "loss/clip_ppo", "conf/loss/mine.yaml", cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    below_a_file = run_command("rlexp-config", "copy", "loss/clip_ppo", "conf/loss/mine.yaml/a.yaml", cwd=tmp_path)
    assert (below_a_file.returncode, below_a_file.stderr.count("\n")) == (1, 1), below_a_file.stderr
    typo = run_command("rlexp-config", "copy", "loss/clip_pppo", cwd=tmp_path)
    assert (typo.returncode, "Did you mean loss/clip_ppo?" in typo.stderr) == (2, True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=trpo", "num_epochs=5"], "one step of the policy and 20 of the critic each"),
        (["critic_num_epochs=20"], "40 gradient steps of the policy and 80 of the critic each"),
        (["critic_minibatch_size=128"], "40 gradient steps of the policy and 80 of the critic each"),
        (["loss=reppo", "num_epochs=8"], "32 gradient steps each"),
    ],
)
def test_check_counts_the_steps_of_policy_and_critic(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config(["check", "logger=none", *overrides]) == 0
    assert said in capsys.readouterr().out


def test_check_says_what_would_run_or_what_is_wrong(tmp_path: Path) -> None:
    right = run_command("rlexp-config", "check", "minibatch_size=100", cwd=tmp_path)
    assert right.returncode == 0, right.stderr
    assert "100 batches of 1,024 frames, 100 gradient steps each" in right.stdout
    assert "24 of a batch's 1,024 steps are left out" in right.stdout
    transform = "env.transforms.x={_target_: torchrl.envs.StepCounter, max_stepz: 3}"
    wrong = run_command("rlexp-config", "check", transform, "callbacks.a._target_=nowhere.A", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "env.transforms.x.max_stepz" in wrong.stderr
    assert "Did you mean max_steps?" in wrong.stderr
    assert "callbacks.a._target_=nowhere.A" in wrong.stderr
    assert not list(tmp_path.iterdir())


def test_bash_completes_groups_options_and_keys(tmp_path: Path) -> None:
    offered = {
        "rlexp-train env=h": [f"env={name}" for name in ("half_cheetah", "hopper", "humanoid", "humanoid_standup")],
        "rlexp-train loss.clip_e": ["loss.clip_epsilon="],
        "rlexp-train env/transforms=": [f"env/transforms={name}" for name in ("frozen", "none", "running")],
    }
    script = 'eval "$(rlexp-train --shell-completion install=bash)"\n' + "".join(
        f"COMP_LINE={typed!r} COMP_POINT={len(typed)} COMP_CWORD=1\nhydra_bash_completion\necho ${{COMPREPLY[@]}}\n"
        for typed in offered
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(tmp_path) | {"PATH": path},
        check=True,
    )
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == list(offered.values())


def test_run_is_repeated_from_its_own_folder(tiny_run: Path, tmp_path: Path) -> None:
    again = ["--config-path", str(tiny_run), "--config-name", "config"]
    done = run_command("rlexp-train", *again, "logger.mode=disabled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    repeated = only_run(tmp_path)
    assert rows_of(repeated) == rows_of(tiny_run)
    assert repeated.parent.name == "inverted_double_pendulum"
    other = run_command("rlexp-train", *again, "seed=8", "loss.gama=1", cwd=tmp_path)
    assert (other.returncode, "Did you mean loss.gamma?" in other.stderr) == (2, True)


def test_metadata_pins_the_code_that_ran(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "notes.txt").write_text("one\n")
    git("add", "notes.txt")
    git("commit", "-q", "-m", "first")
    (tmp_path / "notes.txt").write_text("two\n")
    done = run_command("rlexp-train", *TINY, "total_frames=256", "logger=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = only_run(tmp_path)
    metadata = json.loads((run_dir / "metadata.json").read_text())
    assert metadata["git"] == {"commit": git("rev-parse", "HEAD").strip(), "dirty": True}
    assert "+two" in (run_dir / "git.diff").read_text()
    assert metadata["command"][1:] == [*TINY, "total_frames=256", "logger=none"]
    assert len(metadata["config_sha256"]) == 64
