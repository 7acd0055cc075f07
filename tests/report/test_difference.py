"""`rlexp-config diff`: what two runs differ in, from their files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from synthetic import config, write_run

from rlexp.cli.config import config as command
from rlexp.config import ConfigError
from rlexp.report.difference import difference, to_lines
from rlexp.report.tables import NONE


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_settings_origin_and_the_row_at_which_metrics_part(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config(lr=3e-4), [1.0, 2.0, 3.0])
    b = write_run(tmp_path / "b", config(lr=1e-4) | {"threads": 2}, [1.0, 2.5, 3.0])
    edit(a / "metadata.json", versions={"torch": "1", "numpy": "3"}, git={"commit": "c"}, hardware={"cpus": 2})
    edit(b / "metadata.json", versions={"torch": "2", "numpy": "3"}, git=None, hardware={"cpus": 2})
    (a / "git.diff").write_text("+1")
    found = difference(a, b)
    assert found.settings == {"optim.lr": ("0.0003", "0.0001"), "threads": ('"auto"', "2")}
    assert found.origin == {"git.commit": ('"c"', NONE), "versions.torch": ('"1"', '"2"'), "git": (NONE, "null")}
    assert found.uncommitted
    assert (found.rows, found.equal, found.frames) == ((3, 3), 1, 1000)
    assert found.metrics == {"eval/return": ("2.0", "2.5"), "eval/reward": ("0.002", "0.0025")}
    said = "\n".join(to_lines(found))
    assert "the first 1 rows, to 1,000 frames, are equal; row 2 differs" in said
    assert "git.diff" in said


def test_transforms_in_another_order_are_another_setting(tmp_path: Path) -> None:
    runs = []
    for order in ("ab", "ba"):
        values = config()
        values["env"]["transforms"] = {name: {"_target_": f"torchrl.envs.{name}"} for name in order}
        runs.append(write_run(tmp_path / order, values, [1.0]))
    assert difference(*runs).settings == {"env.transforms": ('["a", "b"]', '["b", "a"]')}


def test_timings_alone_are_no_difference_and_unfinished_runs_are_compared(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "copy", ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    slower = [json.dumps({k: v * 2 if k.startswith("time/") else v for k, v in row.items()}) for row in rows]
    (copy / "metrics.jsonl").write_text("\n".join(slower) + "\n")
    same = run_command("rlexp-config", "diff", str(tiny_run), "copy", cwd=tmp_path)
    assert (same.returncode, same.stderr) == (0, "")
    assert "no difference" in same.stdout
    (copy / "metrics.jsonl").write_text("\n".join(slower[:3]) + "\n" + slower[3][:20])  # as a killed run leaves it
    edit(copy / "summary.json", status="running")
    killed = run_command("rlexp-config", "diff", "copy", str(tiny_run), cwd=tmp_path)
    assert (killed.returncode, killed.stderr) == (1, "")
    assert killed.stdout.rstrip().endswith("the first 3 rows, to 768 frames, are equal; A has 3 rows, B has 4")
    (copy / "metrics.jsonl").unlink()
    assert difference(copy, tiny_run).rows == (0, 4)


def test_what_a_stranger_wrote_is_only_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", config(), [1.0])
    values = config() | {"\x1b[2J\nname": "\u202e\x9b31m"}
    values["policy"] = {"_target_": "os.system", "command": f"touch {tmp_path}/built"}
    b = write_run(tmp_path / "b", values, [1.0])
    row = json.loads((b / "metrics.jsonl").read_text()) | {"\x1b]0;x\x07": "\x1b[31m"}
    (b / "metrics.jsonl").write_text(json.dumps(row))
    assert command(["diff", str(a), str(b)]) == 1
    said = capsys.readouterr().out
    assert "os.system" in said
    assert set(said) & set("\x1b\x07\x9b\u202e") == set()
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize("file", ["config.yaml", "metadata.json", "metrics.jsonl", "summary.json"])
def test_what_cannot_be_read_is_named(file: str, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, config(), [1.0, 2.0]) for name in "ab"]
    (runs[1] / file).write_text("{")
    with pytest.raises(ConfigError, match=f"b/{file}"):
        command(["diff", *map(str, runs)])
    with pytest.raises(ConfigError, match="no run's folder"):
        command(["diff", str(tmp_path), str(runs[0])])
