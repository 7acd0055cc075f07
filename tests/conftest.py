"""What the tests share: how the processes of the suite are set up, and a finished run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY, clean_environment, complete, launch, only_run, processes, rows_of, run_command

__all__ = ["TINY", "clean_environment", "complete", "launch", "only_run", "processes", "rows_of", "run_command"]

# Two workers on two cores: threads would only spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Processes inherit a SIGINT that is ignored, as it is where a shell runs the suite in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Names by which a test module has processes started.
STARTERS = {"run_command", "start_command", "launch", "complete"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes as slow, but for one training, and keep together what shares a finished run."""
    for item in items:
        module = getattr(item, "module", None)
        quick = item.get_closest_marker("quick") is not None
        if not quick and (STARTERS & vars(module).keys() or "tiny_run" in getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if "tiny_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("tiny_run"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default experiment on a tiny budget, with its offline W&B copy."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = run_command("rlexp-train", *TINY, "seed=7", cwd=cwd, cold=True, OMP_NUM_THREADS="2")
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
    environment = clean_environment(tmp_path, MUJOCO_GL="egl")
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("MuJoCo cannot render here: EGL is missing (libegl1)")
