"""What the tests share: the console commands, run as a user would."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Two workers on two cores: threads would only spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Processes inherit a SIGINT that is ignored, as it is where a shell runs the suite in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., "subprocess.CompletedProcess[str]"]

# Batches of 256 frames from four environments: every part of a run, in a second or two.
TINY = [
    "total_frames=1024",
    "collector.frames_per_batch=256",
    "env.num_envs=4",
    "minibatch_size=64",
    "num_epochs=2",
    "env.init_random_steps=64",
    "evaluation.interval=512",
    "evaluation.episodes=3",
    "checkpoint.interval=512",
]


def clean_environment(home: Path) -> dict[str, str]:
    """The environment of a user with no W&B account and no thread settings of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def run_command(
    name: str, *arguments: str, cwd: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a console command of this environment in ``cwd``."""
    return subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments],
        cwd=cwd,
        env=clean_environment(cwd) | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


# Starts each process from one that has its imports behind it: a run in a second, and killed like any other.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["rlexp.cli.train", "rlexp.training.trainer", "rlexp.runs.resume", "gymnasium.envs.mujoco"])


def _command(command: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(cwd)
    main = importlib.import_module(f"rlexp.cli.{command}").main
    sys.argv = [f"rlexp-{command}", *arguments]
    sys.stderr = sys.stdout = Path(cwd, "output.txt").open("a", buffering=1)  # noqa: SIM115 - as long as the process
    main()


def launch(arguments: list[str], cwd: Path, command: str = "train", **environment: str) -> Any:
    """The command's own function in a fresh process that has its imports behind it."""
    process = processes.Process(target=_command, args=(command, arguments, str(cwd), environment))
    process.start()
    return process


def complete(arguments: list[str], cwd: Path, **environment: str) -> None:
    process = launch(arguments, cwd, **environment)
    process.join(120)
    assert process.exitcode == 0, (cwd / "output.txt").read_text()


def only_run(cwd: Path) -> Path:
    """The folder of the one run under ``cwd``."""
    (found,) = cwd.glob("outputs/*/*")
    return found


def rows_of(run_dir: Path, *, timings: bool = False) -> list[dict[str, Any]]:
    """The metrics rows of a run, without what the clock decides unless asked for."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if timings or not k.startswith("time/")} for row in rows]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default experiment on a tiny budget, with its offline W&B copy."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = run_command("rlexp-train", *TINY, "seed=7", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return only_run(cwd)


@pytest.fixture
def run_dir(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may write to."""
    copy: Path = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    return copy


@pytest.fixture
def egl(tmp_path: Path) -> None:
    """Skip where MuJoCo cannot render without a display."""
    probe = "import gymnasium as g; e = g.make('InvertedPendulum-v5', render_mode='rgb_array'); e.reset(); e.render()"
    environment = clean_environment(tmp_path) | {"MUJOCO_GL": "egl"}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("MuJoCo cannot render here: EGL is missing (libegl1)")
