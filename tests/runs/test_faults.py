"""Faults of a run: signals, numbers that are not finite, a second run, a full disk, secrets."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, complete, launch, rows_of
from tensordict import TensorDictBase
from torch import Tensor

from rlexp import Trainer, files, load_config
from rlexp.cli.train import train
from rlexp.config import ConfigError
from rlexp.loggers import NoLoggerConfig, Sink
from rlexp.loggers.local import MetricsFile
from rlexp.runs import checkpoint, store
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.runs.stops import Stopped
from rlexp.training.finite import TrainingError
from rlexp.training.learners.ppo import PPOLearner

LONG = [*TINY, "total_frames=1_000_000", "evaluation.interval=1_000_000", "logger=none", "hydra.run.dir=run"]


def wait_for(what: Callable[[], object], process: Any) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        assert process.exitcode is None
        time.sleep(0.01)


@contextmanager
def running(tmp_path: Path, *overrides: str) -> Iterator[Any]:
    """A long run that has its first row."""
    process = launch([*LONG, *overrides], tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and metrics.read_text(), process)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(signal.SIGTERM, 143, "stopped"), (signal.SIGINT, 130, "stopped"), (signal.SIGUSR1, 0, "requeue")],
)
def test_a_signal_saves_and_the_run_goes_on(number: signal.Signals, code: int, status: str, tmp_path: Path) -> None:
    with running(tmp_path, "logger=csv") as process:
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == code
    run_dir = tmp_path / "run"
    assert json.loads((run_dir / "summary.json").read_text())["status"] == status
    stopped = rows_of(run_dir)
    assert checkpoint.load(run_dir).state.frames == stopped[-1]["frames"]
    assert "eval/return" not in stopped[-1]
    with (run_dir / "metrics.csv").open(newline="") as file:
        assert [float(row["frames"]) for row in csv.DictReader(file)] == [row["frames"] for row in stopped]
    complete(["resume=run", f"total_frames={int(stopped[-1]['frames']) + 256}"], tmp_path)
    resumed = rows_of(run_dir)
    assert resumed[: len(stopped)] == stopped
    assert resumed[-1]["frames"] == stopped[-1]["frames"] + 256


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_second_signal_leaves_at_once(
    second: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, "num_epochs=300") as process:  # so that a batch takes a second
        os.kill(process.pid, signal.SIGSTOP)  # so that it finds both when it goes on
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        wait_for(lambda: "a second signal stops at once" in (tmp_path / "output.txt").read_text(), process)
        os.kill(process.pid, second)
        process.join(5)
        assert process.exitcode == -second
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "running"
    checkpoint.load(tmp_path / "run")


def test_a_signal_in_the_last_batch_leaves_a_complete_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, "total_frames=512")
    iterate = trainer.iterate

    def signalled() -> dict[str, float]:
        if trainer.frames == 256:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate()

    monkeypatch.setattr(trainer, "iterate", signalled)
    trainer.fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["frames"]) == ("completed", 512)
    assert "eval/return" in rows_of(tmp_path / "run")[-1]


def test_a_signal_during_a_save_finishes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.write_bytes

    def write(path: Path, content: bytes) -> None:
        if "256" in str(path):
            os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(store, "write_bytes", real)
        real(path, content)

    trainer = make(tmp_path, "checkpoint.interval=256", "total_frames=2048")
    iterate = trainer.iterate

    def then_signal() -> dict[str, float]:
        monkeypatch.setattr(store, "write_bytes", write)
        return iterate()

    monkeypatch.setattr(trainer, "iterate", then_signal)
    with pytest.raises(Stopped, match="SIGTERM"):
        trainer.fit()
    assert checkpoint.load(tmp_path / "run").state.frames == 256


def make(tmp_path: Path, *overrides: str) -> Trainer:
    experiment = load_config([*TINY, "logger=none", "evaluation.interval=1_000_000", *overrides])
    return Trainer(experiment, tmp_path / "run")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("key", "name"), [("observation", "observation"), (("next", "reward"), "next.reward")])
def test_what_is_not_finite_is_named_with_its_frames(
    key: Any, name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, "checkpoint.interval=256")
    batches = iter(trainer.collector)

    def broken() -> Iterator[TensorDictBase]:
        for number, batch in enumerate(batches):
            if number == 1:
                batch[key][1, 3] = value
            yield batch

    monkeypatch.setattr(trainer, "_batches", broken())
    expected = rf"^{name} is not finite \(NaN or infinity\) at 512 frames"
    with pytest.raises(TrainingError, match=expected):
        trainer.fit()
    check_failed(tmp_path / "run", f"{name} is not finite")


def test_gradients_that_are_not_finite_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, "checkpoint.interval=256")
    learner = trainer.learner
    assert isinstance(learner, PPOLearner)
    gradient = learner.gradient

    def broken(minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        record = gradient(minibatch)
        if trainer.iteration == 2:
            assert learner.weights.grad is not None
            learner.weights.grad[0] = float("nan")
        return record

    monkeypatch.setattr(learner, "gradient", broken)
    with pytest.raises(TrainingError, match="is nan at 512 frames"):
        trainer.fit()
    check_failed(tmp_path / "run", "at 512 frames")


def test_an_infinite_observation_cannot_hide_behind_clipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, "checkpoint.interval=256")
    simulators = trainer.env.base_env
    step = simulators.step_arrays

    def broken() -> None:
        step()
        if trainer.iteration == 1:
            simulators.arrays.observation[0, 0] = float("inf")

    monkeypatch.setattr(simulators, "step_arrays", broken)
    with pytest.raises(TrainingError, match=r"observation is not finite .* at 512 frames"):
        trainer.fit()
    check_failed(tmp_path / "run", "observation is not finite")


def check_failed(run_dir: Path, said: str) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert said in summary["error"]
    assert said in (run_dir / "train.log").read_text()
    good = checkpoint.load(run_dir)
    assert good.state.frames == 256
    assert all(torch.isfinite(value).all() for value in good.state.actor.values())


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        with pytest.raises(RunBusyError, match=f"process {process.pid} on"):
            RunDir(tmp_path / "run").lock()
        second = launch([*LONG, "resume=auto"], tmp_path)
        second.join(60)
        assert second.exitcode == 1
        assert "is in use by process" in (tmp_path / "output.txt").read_text()
        assert process.is_alive()
    RunDir(tmp_path / "run").lock()  # its owner was killed


def test_a_folder_with_a_run_is_not_started_in_again(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "run")
    before = Path("run/metrics.jsonl").read_bytes()
    with pytest.raises(Exception, match="holds a run already"):
        train([*TINY, "hydra.run.dir=run", "logger=none"])
    assert train([*TINY, "hydra.run.dir=run", "resume=auto"]) == 0  # complete: returns at once
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    process = launch([*TINY, "hydra.run.dir=file/run", "logger=none"], tmp_path)
    process.join(60)
    assert process.exitcode == 1
    said = (tmp_path / "output.txt").read_text()
    assert "rlexp-train: [Errno 20] Not a directory" in said
    assert "Traceback" not in said


class NoLogger(NoLoggerConfig):
    def open(self, *arguments: object) -> list[Sink]:
        raise ValueError("no such project")


def test_a_run_that_cannot_begin_has_failed_and_its_log_says_why(tmp_path: Path) -> None:
    trainer = make(tmp_path, f"logger._target_={__name__}.NoLogger")
    handlers = [*logging.getLogger("rlexp").handlers]
    with pytest.raises(ValueError, match="no such project"):
        trainer.fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == {"status": "failed", "error": "ValueError: no such project"}
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
    assert logging.getLogger("rlexp").handlers == handlers


@pytest.mark.parametrize("what", ["metrics", "checkpoint"])
def test_disk_full_in_mid_run(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, "checkpoint.interval=256")
    owner, name = (MetricsFile, "log") if what == "metrics" else (store, "write_bytes")
    real = getattr(owner, name)

    def write(*arguments: Any) -> None:
        if trainer.iteration == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(owner, name, write)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    monkeypatch.undo()
    good = checkpoint.load(tmp_path / "run")
    assert good.state.frames == 256
    complete(["resume=run"], tmp_path)
    assert [row["frames"] for row in rows_of(tmp_path / "run")] == [256, 512, 768, 1024]


@pytest.mark.parametrize("given", [".api_key=hunter2hunter2", "={api_key: hunter2hunter2}"])
def test_secrets_reach_no_file(given: str, tmp_path: Path) -> None:
    (tmp_path / "secretive.py").write_text(
        "import gymnasium, pathlib\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Secretive(PendulumEnv):\n"
        "    def __init__(self, api_key=None, **kwargs):\n"
        "        self.header = {'auth': f'Bearer {api_key}'}\n"
        "        super().__init__(**kwargs)\n"
        "    def step(self, action):\n"
        "        with open(pathlib.Path(__file__).with_name('used.txt'), 'a') as used:\n"
        "            used.write(self.header['auth'] + ' ')\n"
        "        return super().step(action)\n"
        "gymnasium.register('Secretive-v0', Secretive, max_episode_steps=20)\n"
    )
    secrets = {"SOME_SERVICE_TOKEN": "tok-123456789", "DATABASE_PASSWORD": "correct horse"}
    arguments = ["env=gym", "env.id=secretive:Secretive-v0", f"+env.kwargs{given}", "hydra.run.dir=run"]
    arguments += [*TINY, "logger.mode=offline", "logger.tags=[tok-123456789,'https://me:swordfish@host/x']"]
    complete(arguments, tmp_path, PYTHONPATH=str(tmp_path), **secrets)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"metadata.json", "config.yaml", "manifest.json", "train.log"} <= {path.name for path in files}
    for path in files:
        for secret in ("hunter2hunter2", "swordfish", *secrets.values()):
            assert secret.encode() not in path.read_bytes(), (path, secret)
    assert "<redacted>" in json.loads((tmp_path / "run" / "metadata.json").read_text())["command"][3]
    # A resumed run needs it again.
    process = launch(["resume=run", "total_frames=1280"], tmp_path, PYTHONPATH=str(tmp_path))
    process.join(60)
    assert process.exitcode == 2
    assert "env.kwargs.api_key" in (tmp_path / "output.txt").read_text()
    (tmp_path / "used.txt").write_text("")
    again = ["resume=run", "total_frames=1280", "+env.kwargs.api_key=brandnewkey99", "trust=[secretive]"]
    complete(again, tmp_path, PYTHONPATH=str(tmp_path))
    assert {*(tmp_path / "used.txt").read_text().split()} == {"Bearer", "brandnewkey99"}, "the key of today"


def test_secrets_of_a_multirun_are_refused_since_hydra_would_keep_them(tmp_path: Path) -> None:
    process = launch(["--multirun", "seed=0,1", "+env.kwargs.api_key=hunter2hunter2", *TINY], tmp_path)
    process.join(60)
    assert process.exitcode == 2
    assert "oc.env" in (tmp_path / "output.txt").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(b"hunter2hunter2" not in path.read_bytes() for path in files)


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "git.diff"])
def test_a_run_replaces_no_file_that_no_run_has_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"has a {name} that no run has left"):
        train([*TINY, "logger=none", "hydra.run.dir=."])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
