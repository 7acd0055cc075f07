"""Sweeps: the index, failures, stops, ``sweep.resume``, and every launcher."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import warm
from commands import TINY, complete, launch, rows_of, run_command
from omegaconf import OmegaConf

from rlexp.cli.report import report as report_command
from rlexp.cli.sweep import kept_settings
from rlexp.cli.train import train
from rlexp.config import ConfigError, Sources, load_hydra
from rlexp.machine import usable_cpus
from rlexp.runs.rundir import RunBusyError
from rlexp.sweeps import SweepDir, SweepPlan, run_jobs
from rlexp.sweeps.launchers import CoresPerJob, JobLauncher, share_cores

BOOM = """
from pathlib import Path
from rlexp.callbacks import Callback

class Boom(Callback):
    def after_update(self, trainer, metrics):
        if trainer.config.seed == 1 and not Path("mended").exists():
            raise ValueError("this job is broken")
"""
SHORT = [*TINY, "total_frames=256", "logger=none"]
FAILING = [*SHORT, "callbacks.boom._target_=boom.Boom"]


@pytest.fixture(scope="module", autouse=True)
def warm_jobs() -> None:
    """A sweep of this process would start the server of its jobs cold."""
    warm.start()


def index(sweep: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep / "sweep.csv").open(newline="")))


def only_sweep(cwd: Path) -> Path:
    (found,) = cwd.glob("outputs/multirun/*")
    return found


def report(*dirs: Path, out: Path) -> list[dict[str, str]]:
    """The table of ``rlexp-report``, without what the clock decides."""
    assert report_command([*map(str, dirs), f"out={out}"]) == 0
    rows = csv.DictReader((out / "table.csv").open(newline=""))
    return [{key: value for key, value in row.items() if "seconds" not in key and "fps" not in key} for row in rows]


def test_one_job_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boom.py").write_text(BOOM)
    monkeypatch.chdir(tmp_path)
    assert train(["--multirun", *FAILING, "seed=0,1,2"]) == 1
    said = capsys.readouterr()
    sweep = only_sweep(tmp_path)
    assert "job 1 failed (seed=1): ValueError: this job is broken" in said.err
    assert f"--multirun sweep.resume={sweep.relative_to(tmp_path)} 'trust=[boom]'\n" in said.out
    assert "sweep of 3 jobs, 1 at once" in said.err
    assert "sweep: 2 done, 1 failed, 0 running, 0 left" in said.err

    rows = index(sweep)
    assert list(rows[0]) == ["job", "overrides", "status", "result", "seconds", "error"]
    assert [row["status"] for row in rows] == ["completed", "failed", "completed"]
    assert [row["overrides"].split()[-1] for row in rows] == ["seed=0", "seed=1", "seed=2"]
    tracebacks = [job for job in ("0", "1", "2") if "Traceback" in (sweep / job / "train.log").read_text()]
    assert tracebacks == ["1"]
    assert rows[1]["error"].rstrip().endswith("ValueError: this job is broken")
    assert rows[1]["error"].startswith("Traceback")
    for row in (rows[0], rows[2]):
        summary = json.loads((sweep / row["job"] / "summary.json").read_text())
        assert float(row["result"]) == summary["final"]["eval/return"]
        assert float(row["seconds"]) == summary["seconds"]
    (table,) = report(sweep, out=tmp_path / "report")
    assert (table["seeds"], table["left_out"]) == ("2", "1")
    assert str(sweep / "1") in (tmp_path / "report" / "table.md").read_text()

    (tmp_path / "mended").touch()
    kept = (sweep / "0" / "metrics.jsonl").stat().st_mtime_ns
    assert [job.status for job in run_jobs(sweep, SweepDir(sweep).plan().jobs)] == ["completed"] * 3
    assert [row["error"] for row in index(sweep)] == [""] * 3
    assert (sweep / "0" / "metrics.jsonl").stat().st_mtime_ns == kept


def test_the_printed_command_says_again_what_the_folder_may_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boom.py").write_text(BOOM)
    monkeypatch.chdir(tmp_path)
    hydra = ["hydra.sweep.dir=a sweep", "launcher=basic", "hydra.job.name=mine"]
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [train, _self_]\n")
    jobs = [*FAILING, "seed=1", "env.name=${oc.decode:pole}"]
    sources = ["--config-path", str(tmp_path / "conf"), "--config-name", "mine"]
    assert train(["--multirun", *sources, *jobs, *hydra]) == 1
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("with: ")[2])
    resume = "sweep.resume=a sweep"
    assert command == ["rlexp-train", "--multirun", *sources, resume, "hydra.job.name=mine", "trust=[boom,hydra]"]
    # Whether the jobs are given again or not: the folder may come from anyone.
    for others in (["trust=[boom]"], [*sources, *jobs]):
        with pytest.raises(ConfigError, match=r"job\.name=mine(.|\n)*not taken from a resumed folder"):
            train(["--multirun", resume, *others])
    with pytest.raises(ConfigError, match=r"--config-path(.|\n)*--config-name(.|\n)*reads the environment"):
        train(["--multirun", resume, "hydra.job.name=mine", "trust=[boom]"])

    (tmp_path / "mended").touch()
    assert train(command[1:]) == 0
    assert "report on all of them: rlexp-report 'a sweep'\n" in capsys.readouterr().out
    assert SweepDir("a sweep").plan().hydra == hydra


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], ["launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.verbose=1"]),
        (["hydra.launcher.n_jobs=3"], ["launcher=joblib", "hydra.launcher.verbose=1"]),
        (["launcher=joblib"], ["hydra.launcher.n_jobs=2", "hydra.launcher.verbose=1"]),
        (["launcher=ray"], []),
    ],
)
def test_a_resumed_sweep_keeps_the_launchers_settings_that_are_not_given_again(
    given: list[str], kept: list[str]
) -> None:
    assert kept_settings(["launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.verbose=1"], given) == kept


def test_fail_fast_leaves_the_rest_and_the_report_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boom.py").write_text(BOOM)
    monkeypatch.chdir(tmp_path)
    jobs = run_jobs("sweep", [[*FAILING, f"seed={seed}"] for seed in (0, 1, 2)], fail_fast=True)
    assert [job.status for job in jobs] == ["completed", "failed", "waiting"]
    report(tmp_path / "sweep", out=tmp_path / "report")
    listed = (tmp_path / "report" / "table.md").read_text()
    assert "not started" in listed
    assert str(tmp_path / "sweep" / "2") in listed


def test_a_process_that_dies_is_a_failed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die = "import os, signal\nclass Die:\n    def __init__(self):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "die.py").write_text(die)
    monkeypatch.chdir(tmp_path)
    jobs = run_jobs("sweep", [[*SHORT, "callbacks.die._target_=die.Die"], SHORT])
    assert [job.status for job in jobs] == ["failed", "completed"]
    assert jobs[0].error == "the job's process was ended by SIGKILL"


def test_a_job_that_cannot_be_built_has_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (job,) = run_jobs("sweep", [[*SHORT, "env=gym", "env.id=CartPole-v1"]])
    assert job.status == "failed"
    assert job.error is not None
    assert "ConfigError" in job.error
    assert "Traceback" in (job.path / "train.log").read_text()
    assert "Traceback" in index(tmp_path / "sweep")[0]["error"]


@pytest.fixture
def begun(tmp_path: Path) -> SweepDir:
    """A sweep of two jobs that was killed before the first began."""
    sweep = SweepDir(tmp_path / "sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlexp.sweeps.engine._run", lambda *_: None)
        run_jobs(sweep.path, [[*SHORT, "seed=0"], [*SHORT, "seed=1"]])
    assert [row["status"] for row in index(sweep.path)] == ["waiting"] * 2
    return sweep


def resume(begun: SweepDir, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("rlexp-train", "-m", f"sweep.resume={begun.path}", *arguments, cwd=begun.path.parent)


def test_two_sweeps_cannot_share_a_folder(begun: SweepDir) -> None:
    begun.lock()
    done = resume(begun)
    assert done.returncode == 1
    assert f"is in use by process {os.getpid()} on" in done.stderr


def test_a_job_that_still_runs_keeps_a_new_sweep_out(begun: SweepDir) -> None:
    run = begun.run(1)
    run.lock()
    run.summary.write_text('{"status": "running"}')
    with pytest.raises(RunBusyError, match=r"sweep/1 is in use"):
        run_jobs(begun.path, begun.plan().jobs)
    assert not begun.run(0).summary.exists()


def test_other_overrides_are_refused_by_name(begun: SweepDir) -> None:
    done = resume(begun, *SHORT, "seed=0,2")
    assert done.returncode == 2
    assert "seed=1\n    is missing" in done.stderr
    assert "seed=2\n    is not part of the sweep" in done.stderr
    fewer = resume(begun, *SHORT, "seed=1,0")
    assert fewer.returncode == 2
    assert "not in this order" in fewer.stderr


def test_a_config_that_was_edited_since_is_refused_by_name(begun: SweepDir) -> None:
    config: Any = OmegaConf.load(begun.run(1).config)
    config.loss.gamma = 0.5
    OmegaConf.save(config, begun.run(1).config)
    with pytest.raises(ConfigError, match=r"loss\.gamma=0\.99\n.*it was 0\.5; job 1"):
        run_jobs(begun.path, begun.plan().jobs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--multirun", "seed=0,1", "sweep.fail_fst=true"], "Did you mean sweep.fail_fast?"),
        (["--multirun", "seed=0,1", "sweep.resume=nowhere"], "has no sweep.json"),
        (["--multirun", "seed=0,1", "launcher=jolib"], "Did you mean joblib?"),
        (["--multirun", "seed=0,1", "launcher=joblib", "hydra.launcher.n_jobs=4096"], "the cores of this machine"),
        (["--multirun", "seed=0,1", "launcher=joblib", "hydra.launcher.n_job=1"], "n_job"),
        (["--multirun", "seed=0,1", "hydra.sweep.subdir=x"], "a job's folder is its number"),
        (["--multirun", "seed=0,1", "hydra.run.dir=x"], "a sweep's folder is hydra.sweep.dir"),
        (["--multirun", "resume=a,b"], "sweep.resume"),
        (["sweep.fail_fast=true"], "is a setting of --multirun"),
        (["launcher=joblib"], "is a setting of --multirun"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_reported_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        train(arguments)
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("launcher", "cores", "share"),
    [
        (["launcher=basic"], 8, CoresPerJob(1, 8)),
        (["launcher=joblib"], 2, CoresPerJob(2, 1)),
        (["launcher=joblib"], 16, CoresPerJob(12, 1)),
        (["launcher=joblib", "hydra.launcher.n_jobs=3"], 8, CoresPerJob(3, 2)),
        (["launcher=joblib", "hydra.launcher.n_jobs=-3"], 8, CoresPerJob(6, 1)),
        (["launcher=submitit_local", "hydra.launcher.cpus_per_task=3"], 8, CoresPerJob(2, 3, rounds=True)),
        (["launcher=submitit_slurm"], 1, CoresPerJob(None, 2)),
        (["launcher=ray", "hydra.launcher.ray.remote.num_cpus=4"], 8, CoresPerJob(None, 4)),
    ],
)
def test_cores_are_shared_out(launcher: list[str], cores: int, share: CoresPerJob) -> None:
    _, config = load_hydra(launcher)
    assert share_cores(config.hydra.launcher, 12, cores) == share


def test_jobs_elsewhere_have_the_cores_that_they_ask_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the small job that starts them
    plan = SweepPlan([], ["launcher=submitit_slurm", "hydra.launcher.cpus_per_task=16"], Sources())
    assert JobLauncher(print, str(tmp_path), 4, plan).share == CoresPerJob(None, 16)
    here = SweepPlan([], ["launcher=joblib", "hydra.launcher.n_jobs=1"], Sources())
    assert JobLauncher(print, str(tmp_path), 4, here).share == CoresPerJob(1, 1)


# Eight batches in each job.
LONG = [*TINY, "total_frames=2048", "env=hopper", "env.max_episode_steps=100", "logger=none"]
SEEDS = (0, 1)


@pytest.mark.kill
def test_killed_at_random_instants_it_is_the_sweep_that_was_never_disturbed(tmp_path: Path) -> None:
    # Each time by another launcher, which is all that each of them is tested by: every process costs its imports.
    rng = random.Random()
    sweep = tmp_path / "sweep"
    cores = usable_cpus()
    killed = [
        [*LONG, "seed=0,1", f"hydra.sweep.dir={sweep}", "launcher=joblib"],
        [f"sweep.resume={sweep}", "launcher=submitit_local", f"hydra.launcher.cpus_per_task={cores}"],
    ]
    for overrides in killed:
        with started(["--multirun", *overrides], tmp_path) as process:
            wait_for_rows(sweep, count_rows(sweep) + rng.randrange(1, 6), process)
        assert {row["status"] for row in index(sweep)} <= {"completed", "failed", "unfinished", "waiting"}
        assert any(row["status"] != "completed" for row in index(sweep))

    last = [f"sweep.resume={sweep}", "launcher=ray", f"hydra.launcher.ray.remote.num_cpus={cores}"]
    # Cold: Ray's own processes do not always start from one that was forked with Ray imported.
    done = run_command("rlexp-train", "--multirun", *last, cwd=tmp_path, cold=True)
    assert done.returncode == 0, done.stderr
    for seed in SEEDS:
        complete([*LONG, f"seed={seed}", f"hydra.run.dir=alone/{seed}"], tmp_path)
        assert rows_of(sweep / str(seed)) == rows_of(tmp_path / "alone" / str(seed))
    tables = [report(runs, out=tmp_path / "report") for runs in (sweep, tmp_path / "alone")]
    assert tables[0] == tables[1]
    assert [row["seeds"] for row in tables[0]] == ["2"]


def test_a_signal_saves_what_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (own := tmp_path / "my conf").mkdir()
    command = ["--multirun", "--config-dir", str(own), *LONG, "total_frames=1_000_000", "seed=0,1"]
    with started([*command, f"hydra.sweep.dir={sweep}"], tmp_path) as process:
        wait_for_rows(sweep, 1, process)
        process.terminate()
        process.join(60)
        output = (tmp_path / "output.txt").read_text()
        assert process.exitcode == 143, output
        assert f"Resume it with: rlexp-train --multirun --config-dir '{own}' sweep.resume={sweep}\n" in output
        deadline = time.monotonic() + 10
        while processes_in(tmp_path):  # those of the launcher and of multiprocessing see it and leave
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert [row["status"] for row in index(sweep)] == ["stopped", "waiting"]
    last = rows_of(sweep / "0")[-1]
    assert (sweep / "0" / "checkpoints" / "latest").read_text() == f"{last['frames']:012d}"


def test_the_signal_of_a_time_limit_is_the_supervisor_s_to_pass_on(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    with started(["--multirun", *LONG, "seed=0", f"hydra.sweep.dir={sweep}"], tmp_path) as process:
        wait_for_rows(sweep, 1, process)
        # Slurm signals the training as well, and not the supervisor alone.
        owner = (sweep / "0" / ".lock").read_text()
        os.kill(int(owner.split()[1]), signal.SIGUSR2)
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert [row["status"] for row in index(sweep)] == ["completed"]


@contextmanager
def started(arguments: list[str], cwd: Path) -> Iterator[ForkServerProcess]:
    """The command, running, in a folder that no process outlives; it writes to ``output.txt``."""
    process = launch(arguments, cwd)
    try:
        yield process
    finally:
        kill_all(cwd)
        process.join()


def count_rows(sweep: Path) -> int:
    return sum(path.read_text().count("\n") for path in sweep.glob("*/metrics.jsonl"))


def wait_for_rows(sweep: Path, rows: int, process: ForkServerProcess) -> None:
    deadline = time.monotonic() + 120
    while count_rows(sweep) < rows:
        assert time.monotonic() < deadline
        assert process.exitcode is None, (sweep.parent / "output.txt").read_text()
        time.sleep(0.01)


def processes_in(cwd: Path) -> list[int]:
    """Every process that works in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == cwd:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill_all(cwd: Path) -> None:
    """``kill -9`` of all processes of a sweep, wherever a launcher has put them."""
    while found := processes_in(cwd):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
