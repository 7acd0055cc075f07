"""A damaged metrics.jsonl or metadata.json is repaired at a resume where it can be, and what is missing is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import TINY, rows_of
from hypothesis import given
from hypothesis import strategies as st

from rlexp import Trainer, load_config
from rlexp.loggers.local import MetricsFile
from rlexp.report import load_runs

ROWS = [json.dumps({"frames": 256 * i, "eval/return": 1.0}) for i in range(1, 6)]


@given(
    lines=st.lists(st.sampled_from([*ROWS, "", ROWS[2][:9], "[1]", "null", '{"frames": "x"}', "\x00\x00"]), max_size=9),
    end=st.sampled_from(["", "\n", "\n\n", "\n" + ROWS[4][:12]]),
)
def test_only_whole_rows_up_to_the_checkpoint_are_kept(
    lines: list[str], end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_text("\n".join(lines) + end)
    file = MetricsFile(path, frames=1024)
    file.close({})
    kept = [line for line in lines if line in ROWS[:4]]
    assert path.read_text().splitlines() == kept
    assert file.rows == len(kept)


def test_lost_rows_are_reported_in_log_summary_and_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(load_config([*TINY, "logger=none"]), run).fit()
    rows = rows_of(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}\n{lines[3]}\n\n")
    (run / "metadata.json").write_text("")
    summary = Trainer.resume(run, ["total_frames=1280"]).fit()
    assert [row["frames"] for row in rows_of(run)] == [256, 1024, 1280]
    assert rows_of(run)[:2] == [rows[0], rows[3]]
    saved = json.loads((run / "summary.json").read_text())
    assert saved["missing_rows"] == 2
    assert saved["status"] == summary["status"] == "completed"
    said = (run / "train.log").read_text()
    assert "2 rows before the checkpoint are missing" in said
    assert "metadata.json cannot be read" in said
    (session,) = json.loads((run / "metadata.json").read_text())["sessions"]
    assert session["frames"] == 1024
    (found,) = load_runs([run])
    assert (found.status, "2 of 5 rows are missing" in found.damage) == ("completed", True)
