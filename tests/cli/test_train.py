"""``rlexp-train`` and ``rlexp-eval``, from the command line, for real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, console_script, only_run, rows_of, run_command

from rlexp import Trainer, load_config
from rlexp.cli.train import train
from rlexp.config import ConfigError
from rlexp.runs.stops import Stopped

PNG = b"\x89PNG\r\n\x1a\n"

METRICS = {
    *("frames", "train/reward", "train/step_count", "train/lr", "train/episode_return", "train/episode_length"),
    *("eval/reward", "eval/return", "eval/step_count", "eval/episode_length"),
    *("loss/objective", "loss/critic", "loss/entropy", "loss/kl", "loss/kl_approx", "loss/clip_fraction", "loss/ess"),
    *("loss/mean_ratio", "loss/max_ratio"),
    *(
        "train/parameters_hash",
        "loss/explained_variance",
        "optim/epochs",
        "optim/grad_norm",
        "time/fps",
        "time/collect",
        "time/update",
        "time/eval",
    ),
}


@pytest.mark.quick
def test_run_folder_holds_everything(tiny_run: Path) -> None:
    files = {str(path.relative_to(tiny_run)) for path in tiny_run.rglob("*") if path.is_file()}
    for name in ("config.yaml", "metadata.json", "metrics.jsonl", "summary.json", "train.log", "checkpoints/latest"):
        assert name in files
    images = sorted(tiny_run.glob("plots/*.png"))
    assert [p.stem for p in images] == [
        *("overview", "test_return", "test_step_count", "training_reward", "training_step_count"),
    ]
    assert all(p.read_bytes().startswith(PNG) and p.stat().st_size > 5000 for p in images)
    metadata = json.loads((tiny_run / "metadata.json").read_text())
    assert metadata["seed"] == 7
    assert metadata["command"][0] == "rlexp-train"
    assert metadata["versions"]["torch"]
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert (summary["status"], summary["frames"]) == ("completed", 1024)
    assert tiny_run.parent.name == "inverted_double_pendulum"


@pytest.mark.quick
def test_metrics_have_the_names_and_frames_that_scripts_rely_on(tiny_run: Path) -> None:
    rows = rows_of(tiny_run, timings=True)
    assert [row["frames"] for row in rows] == [256, 512, 768, 1024]
    assert set().union(*rows) == METRICS
    assert [("eval/return" in row) for row in rows] == [False, True, False, True]
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["final"]["eval/return"] == rows[-1]["eval/return"]
    # Linear to 0, one step per batch: the rate that each batch was trained with.
    assert [row["train/lr"] for row in rows] == pytest.approx([7e-4 * f for f in (1, 0.75, 0.5, 0.25)])


# Of a loss or a setting that is not the default.
OPTIONAL = {
    *("loss/beta", "loss/value_clip_fraction", "loss/step_fraction", "loss/gradient_norm"),
    *("loss/alpha", "loss/within_kl", "loss/outside_bins", "loss/embedding"),
}


def test_page_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`((?:train|eval|loss|optim|time)/\w+)`", page)) == METRICS - {"frames"} | OPTIONAL


def test_same_command_gives_same_metrics_to_the_last_digit(tiny_run: Path, tmp_path: Path) -> None:
    # On another number of cores, too: the session's run had two.
    done = run_command("rlexp-train", *TINY, "seed=7", "logger=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows_of(only_run(tmp_path)) == rows_of(tiny_run)
    other = tmp_path / "other"
    other.mkdir()
    run_command("rlexp-train", *TINY, "seed=8", "total_frames=256", "logger=none", cwd=other)
    assert rows_of(only_run(other))[0]["train/reward"] != rows_of(tiny_run)[0]["train/reward"]


def test_offline_wandb_run_is_a_copy_of_the_metrics_file(tiny_run: Path) -> None:
    (offline,) = tiny_run.glob("wandb/offline-run-*")
    read = run_command("wandb", "leet", "inspect", "--json", str(offline), cwd=tiny_run)
    assert read.returncode == 0, read.stderr
    records = [json.loads(line) for line in read.stdout.splitlines()]
    copied = [wandb_row(r["history"]) for r in records if r["type"] == "history"]
    assert copied == rows_of(tiny_run, timings=True)


def wandb_row(history: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in history["item"].items() if not key.startswith("_")}


def test_eval_of_the_run_gives_its_final_evaluation_again(tiny_run: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-eval", f"checkpoint={tiny_run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    final = json.loads((tiny_run / "summary.json").read_text())["final"]
    assert result["mean_return"] == final["eval/return"]
    assert len(result["returns"]) == len(set(result["seeds"])) == 3
    assert max(result["lengths"]) == final["eval/step_count"]

    more = run_command("rlexp-eval", f"checkpoint={tiny_run}", "episodes=5", cwd=tmp_path)
    assert json.loads(more.stdout.splitlines()[-1])["returns"][:3] == result["returns"]


def test_eval_says_what_is_wrong_with_its_command_line(tiny_run: Path, tmp_path: Path) -> None:
    wrong = run_command("rlexp-eval", f"checkpoint={tiny_run}", "episode=5", "seed=-1", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Did you mean episodes?" in wrong.stderr
    assert "seed=-1" in wrong.stderr
    missing = run_command("rlexp-eval", "checkpoint=nowhere", cwd=tmp_path)
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=tutorial", "total_frames=1000", "num_epochs=1", "evaluation.episodes=1"],
        ["env=hopper", *TINY, "total_frames=512"],
        ["env=half_cheetah", *TINY, "total_frames=512", "env.max_episode_steps=50"],
        ["env=inverted_pendulum", *TINY, "total_frames=512", "env/transforms=none"],
        ["env=gym", "env.id=Swimmer-v5", *TINY, "total_frames=512", "env.max_episode_steps=50", "env.frame_skip=2"],
        ["env=gym", "env.id=Pendulum-v1", *TINY, "optim.schedule=constant", "loss.entropy_coeff=0.01", "threads=2"],
    ],
    ids=["tutorial", "hopper", "half_cheetah", "inverted_pendulum", "frame_skip", "pendulum"],
)
def test_environments_and_presets_train(arguments: list[str], tmp_path: Path) -> None:
    done = run_command("rlexp-train", *arguments, "logger=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = only_run(tmp_path)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "completed"
    assert all("loss/objective" in row for row in rows_of(run_dir))


def test_frames_count_simulator_frames(tmp_path: Path) -> None:
    done = run_command("rlexp-train", *TINY, "env.frame_skip=4", "minibatch_size=16", "logger=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["frames"] for row in rows_of(only_run(tmp_path))] == [256, 512, 768, 1024]


def test_failing_run_keeps_its_traceback_and_says_so(tmp_path: Path) -> None:
    # Rewards of 1e308 a step: their sums are not finite.
    (tmp_path / "broken.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Broken(PendulumEnv):\n"
        "    def step(self, action):\n"
        "        observation, _, *rest = super().step(action)\n"
        "        return observation, float('nan'), *rest\n"
        "gymnasium.register('Broken-v0', Broken, max_episode_steps=20)\n"
    )
    done = run_command(
        "rlexp-train",
        "env=gym",
        "env.id=broken:Broken-v0",
        *TINY,
        "logger=none",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 1
    run_dir = only_run(tmp_path)
    assert "reward is not finite (NaN or infinity) at 256 frames" in done.stderr
    assert "Traceback" in (run_dir / "train.log").read_text()
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "failed"


def test_a_stopped_run_says_how_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(trainer: Trainer) -> None:
        trainer.close()
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(Trainer, "fit", stopped)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counting.py").write_text("from rlexp.callbacks import Callback\nclass Count(Callback):\n    pass\n")
    for own, trust in ([], ""), (["+callbacks.count._target_=counting.Count"], " 'trust=[counting]'"):
        assert train([*TINY, "logger=none", f"hydra.run.dir={tmp_path / str(len(own))}", *own]) == 130
        assert capsys.readouterr().out.endswith(f"rlexp-train resume={tmp_path / str(len(own))}{trust}\n")


def test_a_reader_that_has_read_enough_ends_a_command_quietly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [console_script("rlexp-config"), "list"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 128 + signal.SIGPIPE


def test_a_setting_without_its_group_is_found_in_it() -> None:
    with pytest.raises(
        ConfigError, match=r"clip_epsilon\n *there is no such setting\. Did you mean loss\.clip_epsilon\?"
    ):
        load_config(["clip_epsilon=0.1"])
