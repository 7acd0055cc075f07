"""`rlexp-sweep status`: what runs, what failed and why, and what it would cost to finish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import config, write_run

from rlexp.cli.sweep import status
from rlexp.config import ConfigError, Sources
from rlexp.sweeps import SweepDir, SweepPlan


def sweep_of(folder: Path, jobs: list[list[str]]) -> SweepDir:
    folder.mkdir()
    sweep = SweepDir(folder)
    sweep.write_plan(SweepPlan(jobs, [], Sources()))
    return sweep


def job(sweep: SweepDir, number: int, env: str, rows: int, how: str | None, seconds: float | None = None) -> None:
    """The folder of a job with a budget of 10,000 frames and 1,000 in a row."""
    path = sweep.path / str(number)
    write_run(path, config(env) | {"total_frames": 10_000}, [1.0], rows=rows, status=how)
    if seconds is not None:
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps(summary | {"seconds": seconds}))


def test_it_says_what_failed_and_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path / "sweep", [["total_frames=10_000", f"seed={seed}"] for seed in range(7)])
    pendulum = "inverted_double_pendulum"
    for number, seconds in enumerate((100.0, 200.0, 900.0)):
        job(sweep, number, "hopper", 10, "completed", seconds)
    job(sweep, 3, pendulum, 10, "completed", 5000.0)
    job(sweep, 4, "hopper", 4, "failed")
    job(sweep, 5, "hopper", 7, None)
    job(sweep, 6, pendulum, 1, "stopped")
    assert status(["status", str(sweep.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "7 jobs: 4 completed, 1 failed, 1 unfinished, 1 stopped"
    assert lines[1:4] == [
        "job 4 (seed=4): failed, 4,000 of 10,000 frames",
        "  RuntimeError: diverged",
        f"  traceback in {sweep.path / '4' / 'train.log'}",
    ]
    assert lines[4:6] == [
        "job 5 (seed=5): unfinished, 7,000 of 10,000 frames",
        "job 6 (seed=6): stopped, 1,000 of 10,000 frames",
    ]
    # The median of hopper's jobs is 0.02 s a frame: 6,000 and 3,000 frames; the pendulum's 0.5 s: 9,000 frames.
    assert lines[6] == "to finish: 1:18:00 one after the other, 1:15:00 for the longest job, by the 4 completed"


def test_running_jobs_are_named_with_their_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path / "sweep", [["seed=0"], ["seed=1"]])
    job(sweep, 0, "hopper", 4, None)
    running = sweep.run(0)
    running.summary.write_text('{"status": "running"}')
    running.lock()
    sweep.lock()
    assert status(["status", str(sweep.path)]) == 0
    said = capsys.readouterr().out
    sweep.unlock()
    running.unlock()
    assert "job 0 (seed=0): running, 4,000 of 10,000 frames, 2,000 frames/s" in said
    assert "to finish: unknown, since no job has completed" in said


def test_a_complete_sweep_costs_nothing_and_names_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path / "sweep", [["\x1b[2Jseed=0"], ["seed=1"]])
    job(sweep, 0, "hopper", 4, "failed")
    (sweep.path / "0" / "summary.json").write_text(json.dumps({"status": "failed", "error": "\x1b]0;x\x07"}))
    job(sweep, 1, "hopper", 10, "completed", 1.0)
    assert status(["status", str(sweep.path)]) == 0
    assert set(capsys.readouterr().out) & set("\x1b\x07") == set()
    complete = sweep_of(tmp_path / "complete", [["seed=0"]])
    job(complete, 0, "hopper", 10, "completed", 1.0)
    assert status(["status", str(complete.path)]) == 0
    assert capsys.readouterr().out == "1 job: 1 completed\n"


@pytest.mark.parametrize("arguments", [[], ["status"], ["state", "x"], ["status", "x"]])
def test_wrong_use_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"rlexp-sweep status DIR|no sweep.json"):
        status(arguments)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "sweep.json").write_text("[")
    if arguments == ["status", "x"]:
        with pytest.raises(ConfigError, match="damaged"):
            status(arguments)
