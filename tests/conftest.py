"""What the tests share: how the processes of the suite are set up, and a finished run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from commands import TINY, clean_environment, only_run, run_command, without_plots
from composing import compose_once, copy_shipped

from rlexp import workers
from rlexp.config import compose

# What is imported stays: a collection, of which collecting the tests has many, would look at all of torch each time.
gc.disable()
# No test sees what the disk has when the power fails, and waiting for it is a minute of the suite.
os.fsync = lambda fd: None
# Whatever account of W&B's this machine has, no test uses it.
for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]
os.environ["NETRC"] = os.devnull
# Three workers on two cores: threads would only spin against each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ |= {"RAY_gcs_server_port_wait_time_s": "120"}  # 30 by default, which a busy machine may exceed
workers._start_program = warm.start_program  # type: ignore[assignment]
compose.compose = compose_once  # type: ignore[assignment, attr-defined]
copy_shipped()
without_plots()
# Processes inherit a SIGINT that is ignored, as it is where a shell runs the suite in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Names by which a test module has processes started.
STARTERS = {"run_command", "start_command", "launch", "complete", "call_command", "launch_ranks"}
# Fixtures of a module that train or take as long: its tests that use one are run by one worker, which makes it once.
MADE_ONCE = {"undisturbed", "teachers", "trained", "halves", "ant", "gymnasium_ant", "sweep", "written"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes as slow, but for one training, and keep together what shares a finished run."""
    for item in items:
        assert isinstance(item, pytest.Function)
        shares_run = "tiny_run" in item.fixturenames
        if shares_run:
            item.add_marker(pytest.mark.xdist_group("tiny_run"))
        elif shared := MADE_ONCE & {*item.fixturenames}:
            of_it = item.callspec.id if hasattr(item, "callspec") and shared & item.callspec.params.keys() else ""
            item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__} {min(shared)} {of_it}"))
        if (shares_run or STARTERS & vars(item.module).keys()) and not item.get_closest_marker("quick"):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("kill") is None)  # what takes longest begins first


def pytest_collection_finish() -> None:
    """Collect garbage again, but not what was imported."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default experiment on a tiny budget, with its offline W&B copy."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = run_command("rlexp-train", *TINY, "seed=7", cwd=cwd, cold=True, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    return only_run(cwd)


@pytest.fixture(autouse=True)
def own_path() -> Iterator[None]:
    """Take from ``sys.path`` what a test has added: another would find modules only after it."""
    path = [*sys.path]
    yield
    sys.path[:] = path


@pytest.fixture
def run_dir(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may write to."""
    copy: Path = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    return copy


@pytest.fixture
def quickly_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare an export with the policy on a few observations; a command compares it on a thousand."""
    monkeypatch.setattr("rlexp.agent.export.CHECKED", 50)


@pytest.fixture(scope="session")
def egl(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where MuJoCo cannot render without a display."""
    probe = "import gymnasium as g; e = g.make('InvertedPendulum-v5', render_mode='rgb_array'); e.reset(); e.render()"
    environment = clean_environment(tmp_path_factory.mktemp("egl"), MUJOCO_GL="egl")
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("MuJoCo cannot render here: EGL is missing (libegl1)")
