"""`rlexp-report --watch`: a table of runs as they go on."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import TINY, clean_environment, launch, run_command
from synthetic import config, write_run

from rlexp.report.runs import current, read_run
from rlexp.report.watch import Seen, _in_live_sweep, sparkline, table
from rlexp.runs.rundir import RunDir

WATCH = [str(Path(sys.executable).parent / "rlexp-report"), "--watch", "interval=0.1"]


def test_what_has_ended_is_shown_once(tmp_path: Path) -> None:
    for seed in (2, 10):
        write_run(tmp_path / "runs" / str(seed), config(seed=seed) | {"total_frames": 4000}, [1.0, 3.0, 200.0])
    write_run(tmp_path / "runs" / "3", config(seed=3, lr=1.0) | {"total_frames": 4000}, [5.0], status="failed")
    done = run_command("rlexp-report", "--watch", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["2", "2", "completed"], ["3", "3", "failed"], ["10", "10", "completed"],
    ]  # fmt: skip
    assert lines[1].split()[3:] == ["3,000", "of", "4,000", "75%", "2,000", "200.0", "▁▁█", "hopper", "lr=0.0003"]
    assert not (tmp_path / "report").exists(), "a view writes nothing"


def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    watching = subprocess.Popen(
        [*WATCH, "outputs"], cwd=tmp_path, env=clean_environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "no run yet\n"
    training = launch([*TINY, "logger=none", "total_frames=4096", "hydra.run.dir=outputs/run"], tmp_path)
    said, _ = watching.communicate(timeout=100)
    training.join(100)
    assert watching.returncode == 0
    assert "running" in said
    assert "completed" in said.splitlines()[-2]
    assert json.loads((tmp_path / "outputs" / "run" / "summary.json").read_text())["status"] == "completed"


def test_a_killed_run_is_distinguished_from_a_running_one(tmp_path: Path) -> None:
    training = launch([*TINY, "logger=none", "total_frames=1e6", "hydra.run.dir=run"], tmp_path)
    seen = Seen([tmp_path])
    deadline = time.monotonic() + 60
    while not any(run.trained for run in seen.runs()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (running,) = seen.runs()
    assert running.status == "running"
    training.kill()
    training.join()
    (killed,) = seen.runs()
    assert killed.status == "killed"
    assert "killed" in "\n".join(table([killed], [tmp_path]))


@pytest.mark.parametrize("released", [False, True])
def test_a_run_that_ends_while_others_are_read_has_ended(released: bool, tmp_path: Path) -> None:
    read = read_run(write_run(tmp_path / "run", config(), [1.0], status=None))
    (tmp_path / "run" / ".lock").write_text(f"process 999999999 on {socket.gethostname()}")
    assert current(read).status == "killed"
    if released:
        (tmp_path / "run" / ".lock").unlink()
        assert current(read).status == "unfinished"
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"status": "completed", "frames": read.trained}))
    assert current(read).status == "completed"


def test_jobs_that_wait_are_waited_for(tmp_path: Path) -> None:
    write_run(tmp_path / "0", config(), [1.0])
    (tmp_path / "sweep.json").touch()
    (tmp_path / "1").mkdir()
    shutil.copy(tmp_path / "0" / "config.yaml", tmp_path / "1")
    assert [run.status for run in Seen([tmp_path]).runs()] == ["completed", "not started"]
    sweep = RunDir(tmp_path)
    sweep.lock()
    assert [run.status for run in Seen([tmp_path]).runs()] == ["completed", "waiting"]
    (tmp_path / "1" / "summary.json").write_text('{"status": "unfinished"}')  # as a resumed sweep writes it
    (tmp_path / "1" / "metadata.json").write_text("{}")
    assert [run.status for run in Seen([tmp_path]).runs()] == ["completed", "waiting"]
    sweep.unlock()


def test_a_trial_of_a_search_is_waited_for(tmp_path: Path) -> None:
    trial = RunDir(tmp_path / "trials" / "000")
    trial.lock()
    run = read_run(write_run(trial.path / "task" / "seed_100", config(), [1.0]))
    assert _in_live_sweep(run)
    trial.unlock()
    assert not _in_live_sweep(run)


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0], status=None)
    os.mkfifo(run / ".lock")
    assert current(read_run(run)).status == "unfinished"


def test_a_status_that_no_run_writes_is_no_end(tmp_path: Path) -> None:
    for status in ("waiting", "unreadable", "anything"):
        run = write_run(tmp_path / status, config(), [1.0], status=status)
        assert current(read_run(run)).status == "unfinished"


def test_ctrl_c_ends_the_view_with_130_and_leaves_the_table(tmp_path: Path) -> None:
    run = RunDir(write_run(tmp_path / "runs" / "a", config(), [1.0], status=None))
    run.lock()
    main, child = pty.openpty()
    watching = subprocess.Popen(
        [*WATCH, "runs"], cwd=tmp_path, env=clean_environment(tmp_path), stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    said = b""
    while b"hopper" not in said:
        said += os.read(main, 4096)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 130
    rest = b""
    with suppress(OSError):  # at the end of it
        while chunk := os.read(main, 65536):
            rest += chunk
    os.close(main)
    run.unlock()
    assert said.startswith(b"\x1b[?1049h"), "the terminal's other screen"
    assert b"hopper" in rest.rpartition(b"\x1b[?1049l")[2], "the last table stays on the terminal's own"
    assert b"Traceback" not in said + rest


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([3.0], "▁"), ([0.0, 1.0], "▁█"), ([float("nan"), 2.0, 2.0], "▁▁"), (range(32), "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██")],
)
def test_sparkline(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
