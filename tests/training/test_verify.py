"""``rlexp-verify`` tells a run that can be run again from one that cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlexp.cli.verify import verify
from rlexp.config import ConfigError


def test_a_run_is_reproducible(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(tiny_run), "iterations=4"]) == 0
    assert "reproducible: 4 iterations" in capsys.readouterr().out


def test_the_first_difference_is_said(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("wandb", "plots"))
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row["train/parameters_hash"] += 1
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["versions"]["torch"] = "0.4.1"
    (copy / "metadata.json").write_text(json.dumps(metadata))
    assert verify([str(copy), "iterations=1"]) == 0
    assert verify([str(copy)]) == 1
    said = capsys.readouterr().out
    assert "not reproducible: at 512 frames train/parameters_hash was" in said
    assert "torch was 0.4.1" in said


def test_command_line_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run's folder"):
        verify([str(tmp_path)])
    with pytest.raises(ConfigError, match="Did you mean iterations"):
        verify([str(tmp_path), "iteration=3"])
