"""W&B: what its environment variables say, the names that it takes, and rows that are made again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from commands import TINY, rows_of, run_command

from rlexp import Trainer, load_config
from rlexp.config import ConfigError, check_targets
from rlexp.loggers.wandb_log import logged_rows
from rlexp.runs import store

VARIABLES = ("MODE", "DIR", "PROJECT", "ENTITY", "NAME", "TAGS", "RUN_GROUP")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*VARIABLES, "API_KEY", "RUN_ID", "SWEEP_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def inspected(part: Path) -> list[dict[str, Any]]:
    """An offline run's records, by W&B's own reader."""
    read = run_command("wandb", "leet", "inspect", "--json", str(part), cwd=part)
    assert read.returncode == 0, read.stderr
    return [json.loads(line) for line in read.stdout.splitlines()]


def history(part: Path) -> list[dict[str, Any]]:
    items = [record["history"]["item"] for record in inspected(part) if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith(("_", "time/"))} for item in items]


def test_the_environment_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "MODE": "offline", "DIR": str(tmp_path / "elsewhere"), "PROJECT": "walking", "ENTITY": "lab", "NAME": "first",
        "TAGS": "slow, careful", "RUN_GROUP": "friday",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)  # with a key, auto alone would go online
    Trainer(load_config([*TINY, "total_frames=256"]), tmp_path / "run").fit()
    (part,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*")
    assert not (tmp_path / "run" / "wandb").exists()
    (run,) = (record["run"] for record in inspected(part) if record["type"] == "run")
    found = [run[key] for key in ("project", "entity", "display_name", "run_group")]
    assert found == ["walking", "lab", "first", "friday"]
    assert run["tags"] == ["inverted_double_pendulum", "slow", "careful"]


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "walking")
    assert load_config([]).to_dict()["logger"]["project"] == "walking"
    assert load_config(["logger.project=mine"]).to_dict()["logger"]["project"] == "mine"
    monkeypatch.delenv("WANDB_PROJECT")
    assert load_config([]).to_dict()["logger"]["project"] == "rlexp"


@pytest.mark.parametrize(("variable", "setting", "runs"), [
    ("disabled", "auto", 0), ("disabled", "offline", 1), ("dryrun", "auto", 1), ("offline", "disabled", 0),
])  # fmt: skip
def test_the_mode(variable: str, setting: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    config = load_config([f"logger.mode={setting}"])
    sinks = config.logger.open(tmp_path / "run", {"env": {"name": "x"}}, "id", 0)
    for sink in sinks:
        sink.close({"status": "completed"})
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*"))) == len(sinks) == runs


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("logger.project=lab/hopper", "logger.entity=lab logger.project=hopper"),
        ("logger.project='a: b'", "has : in it"),
        (f"logger.project={'p' * 129}", "from 1 to 128"),
        ("logger.project=''", "from 1 to 128"),
        ("logger.tags=['']", "empty tag"),
    ],
)
def test_names_that_wandb_refuses_are_found_before_training(setting: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_targets(load_config([setting]))
    assert remedy in str(raised.value)
    assert setting.partition("=")[0] in str(raised.value)


def test_an_unknown_mode_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of line")
    with pytest.raises(ConfigError, match="WANDB_MODE must be one of online, offline, disabled"):
        check_targets(load_config([]))
    check_targets(load_config(["logger.mode=offline"]))


def test_long_names_are_shortened(tmp_path: Path) -> None:
    name = "warehouse_robotics_lab_environments_navigation:WarehouseNavigationContinuous-v0" * 2
    config = load_config(["logger.mode=offline", f"logger.tags=['{name}','{'a' * 64}','ünï']"])
    (sink,) = config.logger.open(tmp_path, {"env": {"name": name}}, "id", 0)
    sink.close({"status": "completed"})
    (part,) = tmp_path.glob("wandb/offline-run-*")
    (run,) = (record["run"] for record in inspected(part) if record["type"] == "run")
    assert run["tags"] == [f"{name[:31]}..{name[-31:]}", "a" * 64, "ünï"]
    assert len(run["run_group"]) <= 128


def settled_rows(folder: Path, run_id: str, count: int) -> list[dict[str, Any]]:
    """What is logged, as soon as there are so many rows: W&B's service may still write when a run has ended."""
    deadline = time.monotonic() + 60
    while len(rows := list(logged_rows(folder, run_id))) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return rows


def test_rows_that_are_made_again_are_not_sent_twice(tmp_path: Path) -> None:
    every = [*TINY, "logger.mode=offline", "checkpoint.interval=256", "checkpoint.keep_last=9"]
    trainer = Trainer(load_config(every), tmp_path)
    trainer.fit()
    older = store.saved(tmp_path / "checkpoints")[1]
    assert older.name == "000000000256"
    Trainer.resume(older, ["total_frames=1024"]).fit()  # as after a kill at 1,024 frames
    Trainer.resume(tmp_path, ["total_frames=1280"]).fit()
    parts = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(parts) == 3
    assert [row["frames"] for row in settled_rows(tmp_path, trainer.run_id, 5)] == [256, 512, 768, 1024, 1280]
    sent = [row for part in parts for row in history(part)]
    frames = [row["frames"] for row in sent]
    assert frames == [256, 512, 768, 1024, 1280]
    rows = rows_of(tmp_path)
    assert sent[:3] == rows[:3]


def test_rows_lost_by_a_kill_are_sent_when_the_run_is_resumed(tmp_path: Path) -> None:
    """W&B's service writes within a second, so that a checkpoint can be newer than the rows in its log."""
    trainer = Trainer(load_config([*TINY, "logger.mode=offline"]), tmp_path)
    trainer.fit()
    assert len(settled_rows(tmp_path, trainer.run_id, 4)) == 4
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    for length in range(len(data), 0, -97):
        path.write_bytes(data[:length])
        if len(list(logged_rows(tmp_path, trainer.run_id))) == 2:
            break
    Trainer.resume(tmp_path, ["total_frames=1280"]).fit()
    settled_rows(tmp_path, trainer.run_id, 5)
    assert [row for part in sorted(tmp_path.glob("wandb/offline-run-*")) for row in history(part)] == rows_of(tmp_path)


def test_a_log_that_cannot_be_read_is_taken_to_be_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(load_config([*TINY, "logger.mode=offline"]), tmp_path)
    trainer.fit()
    assert len(settled_rows(tmp_path, trainer.run_id, 4)) == 4
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    path.write_bytes(data[:7] + bytes([0, 0, 0, 0, 9, 0, 1]) + b"no record" + data)
    with caplog.at_level("WARNING"):
        Trainer.resume(tmp_path, ["total_frames=1280"]).fit()
    assert "it is taken to hold the 4 rows of metrics.jsonl" in caplog.text
    newest = sorted(tmp_path.glob("wandb/offline-run-*"))[-1]
    assert [row["frames"] for row in history(newest)] == [1280]


def test_a_run_of_the_programs_own_goes_on(tmp_path: Path) -> None:
    own = wandb.init(mode="offline", dir=tmp_path, project="own", settings=wandb.Settings(silent=True))
    try:
        Trainer(load_config([*TINY, "total_frames=256", "logger.mode=offline"]), tmp_path / "run").fit()
        (tmp_path / "online").mkdir()
        config = load_config(["logger.mode=online"])
        assert config.logger.open(tmp_path / "online", config.to_dict(), "id", 0) == [], "there is no key"
        assert wandb.run is own
        own.log({"mine": 1.0})
    finally:
        own.finish()
    (part,) = tmp_path.glob("wandb/offline-run-*")
    assert [row["mine"] for row in history(part)] == [1.0]
    (part,) = tmp_path.glob("run/wandb/offline-run-*")
    assert [row["frames"] for row in history(part)] == [256]


def test_a_log_that_was_cut_anywhere_gives_its_whole_rows(tmp_path: Path) -> None:
    trainer = Trainer(load_config([*TINY, "logger.mode=offline"]), tmp_path)
    trainer.fit()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert len(settled_rows(tmp_path, trainer.run_id, 4)) == 4
    data = path.read_bytes()
    counts = []
    copy = tmp_path / "copy" / path.relative_to(tmp_path)
    copy.parent.mkdir(parents=True)
    for length in [*range(0, len(data), 97), len(data)]:
        copy.write_bytes(data[:length])
        counts.append(len(list(logged_rows(tmp_path / "copy", trainer.run_id))))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 4)
