"""Every logger's file, read back by a reader that is not rlexp's, against the run's own ``metrics.jsonl``."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, only_run, rows_of, run_command
from readers import Rows, wandb_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlexp import Trainer, load_config
from rlexp.cli.evaluate import evaluate
from rlexp.cli.train import train
from rlexp.config import ConfigError
from rlexp.loggers.local import CsvFile
from rlexp.runs import checkpoint, store


def csv_rows(run_dir: Path) -> Rows:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def tensorboard_rows(run_dir: Path) -> Rows:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows: dict[int, dict[str, Any]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            row = rows.setdefault(event.step, {"frames": event.step})
            assert name not in row, f"{name} is twice at {event.step} frames"
            row[name] = event.value
    return [rows[frames] for frames in sorted(rows)]


def single(rows: Rows) -> Rows:
    """What TensorBoard keeps of each number: float32."""
    return [{k: v if k == "frames" else torch.tensor(float(v)).item() for k, v in row.items()} for row in rows]


def test_several_write_the_same_rows(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "logger=several", "logger.sinks.wandb.mode=offline", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    rows = rows_of(run, timings=True)
    assert len(rows) == 4
    assert csv_rows(run) == rows
    assert tensorboard_rows(run) == single(rows)
    (offline,) = run.glob("wandb/offline-run-*")
    assert wandb_rows(offline) == rows
    (config,) = EventAccumulator(str(run / "tensorboard")).Reload().Tensors("config/text_summary")
    assert b"clip_epsilon: 0.2" in config.tensor_proto.string_val[0]


@pytest.mark.parametrize("dropped", [["csv"], ["tensorboard", "wandb"]])
def test_any_of_several_can_be_dropped(dropped: list[str], tmp_path: Path) -> None:
    sinks = load_config(["logger=several", *(f"~logger.sinks.{name}" for name in dropped)]).to_dict()["logger"]["sinks"]
    assert set(sinks) == {"csv", "tensorboard", "wandb"} - set(dropped)


def test_what_is_made_again_is_in_no_file_twice(tmp_path: Path) -> None:
    several = ["logger=several", "~logger.sinks.wandb"]
    trainer = Trainer(load_config([*TINY, *several, "checkpoint.interval=256", "checkpoint.keep_last=9"]), tmp_path)
    trainer.fit()
    before = rows_of(tmp_path)
    older = store.saved(tmp_path / "checkpoints")[1]
    assert older.name == "000000000256"
    Trainer.resume(older).fit()
    rows = rows_of(tmp_path, timings=True)
    assert rows_of(tmp_path) == before
    assert csv_rows(tmp_path) == rows
    assert tensorboard_rows(tmp_path) == single(rows)


def test_no_name_of_a_metric_is_a_formula(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"frames": 256, "=1+1": 2.0}\n')
    CsvFile(tmp_path)
    assert csv_rows(tmp_path) == [{"frames": 256, "'=1+1": 2.0}]


def test_a_logger_that_joins_late(run_dir: Path) -> None:
    Trainer.resume(run_dir, ["logger=csv", "total_frames=1280"]).fit()
    assert csv_rows(run_dir) == rows_of(run_dir, timings=True)
    assert [row["frames"] for row in csv_rows(run_dir)] == [256, 512, 768, 1024, 1280]


def test_a_logger_that_fails_is_announced_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: CsvFile, row: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(CsvFile, "log", full)
    several = ["logger=several", "~logger.sinks.wandb"]
    summary = Trainer(load_config([*TINY, *several]), tmp_path).fit()
    assert (summary["status"], len(rows_of(tmp_path))) == ("completed", 4)
    assert len(tensorboard_rows(tmp_path)) == 4
    said = (tmp_path / "train.log").read_text()
    assert said.count("CsvFile failed and gets no more rows") == 1
    assert "No space left on device" in said


def test_a_missing_package_is_reported_before_anything_is_built(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'rlexp\[tensorboard\]'") as raised:
        train(["logger=several", *TINY])
    assert raised.value.problems[0].key == "logger.sinks.tensorboard._target_"
    assert not Path("outputs").exists()
    # Its checkpoints can be evaluated without.
    saved = checkpoint.load(run_dir)
    saved.config["logger"] = {"_target_": "rlexp.loggers.TensorBoardConfig"}
    path = checkpoint.save(tmp_path / "saved", saved.state, saved.config, keep_last=2)
    assert evaluate([f"checkpoint={path}"]) == 0
