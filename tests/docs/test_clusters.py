"""docs/clusters.md: the batch script, with stand-ins for the commands of Slurm, and the settings of launchers."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rlexp.config import load_hydra
from rlexp.sweeps.launchers import share_cores

ROOT = Path(__file__).parents[2]

STAND_INS = {
    "srun": 'exec "$@"',
    # As long as a training that has been asked to stop: the script must wait for it.
    "rlexp-train": """
echo "$@" > arguments
for argument in "$@"; do case $argument in hydra.run.dir=*) run=${argument#hydra.run.dir=};; esac; done
mkdir -p "$run"
trap 'sleep 0.1; echo "{\\"status\\": \\"requeue\\"}" > "$run/summary.json"; exit 0' USR1
trap 'sleep 0.1; echo "{\\"status\\": \\"stopped\\"}" > "$run/summary.json"; exit 143' TERM
echo $$ > started
[ -e finish ] && { echo '{"status": "completed"}' > "$run/summary.json"; exit 0; }
while :; do sleep 0.05; done
""",
    "scancel": 'echo "$@" > scancelled; kill -USR1 "$(cat started)"',
    "scontrol": 'echo "$@" > requeued',
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, with stand-ins for Slurm's commands and for the training."""
    for name, code in STAND_INS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{code}\n")
        command.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "71"}


def run_script(cwd: Path, environment: dict[str, str], send: signal.Signals | None = None) -> int:
    script = ["bash", str(ROOT / "scripts" / "train.slurm"), "env=hopper"]
    with subprocess.Popen(script, cwd=cwd, env=environment, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not (cwd / "started").exists() or not (cwd / "started").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if send is signal.SIGTERM:  # Slurm's own, to every process
                os.killpg(process.pid, send)
            elif send is not None:
                process.send_signal(send)
            return process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_at_the_time_limit_it_is_saved_and_requeued(tmp_path: Path, cluster: dict[str, str]) -> None:
    assert run_script(tmp_path, cluster, signal.SIGUSR1) == 0
    assert (tmp_path / "scancelled").read_text() == "--signal=USR1 71.0\n"
    assert (tmp_path / "requeued").read_text() == "requeue 71\n"
    assert (tmp_path / "arguments").read_text() == "env=hopper hydra.run.dir=runs/71 resume=auto\n"


def test_each_task_of_an_array_has_its_seed_and_its_folder(tmp_path: Path, cluster: dict[str, str]) -> None:
    (tmp_path / "finish").touch()
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    assert run_script(tmp_path, cluster | array) == 0
    assert (tmp_path / "arguments").read_text() == "env=hopper seed=3 hydra.run.dir=runs/70/3 resume=auto\n"
    assert json.loads((tmp_path / "runs" / "70" / "3" / "summary.json").read_text())["status"] == "completed"
    assert not (tmp_path / "requeued").exists()


def test_when_preempted_slurm_requeues_it_by_itself(tmp_path: Path, cluster: dict[str, str]) -> None:
    assert run_script(tmp_path, cluster, signal.SIGTERM) == 143
    assert not (tmp_path / "requeued").exists()


def test_the_launchers_of_the_page_have_the_settings_that_it_gives() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^rlexp-train --multirun (.+)$", page, re.M)]
    given = [[text for text in line if text.startswith(("launcher=", "hydra."))] for line in lines]
    found = {}
    for overrides in given:
        _, config = load_hydra(overrides)
        share_cores(config.hydra.launcher, 2, 8)
        found[overrides[0]] = config.hydra.launcher
    assert found.keys() == {f"launcher={name}" for name in ("submitit_slurm", "submitit_local", "joblib", "ray")}
    table = set(re.findall(r"`(\w+)`", page.partition("| `hydra.launcher.` | |")[2].partition("\n\n")[0]))
    assert {"timeout_min", "max_num_timeout"} <= table
    assert {name for name in table if name not in found["launcher=submitit_slurm"]} <= {"sweep.resume"}
