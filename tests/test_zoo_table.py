"""``benchmarks/zoo.py``: which runs are left, what is kept of those that ended, and the numbers of its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zoo
from learning import Curve, Results
from worker_subject import one_that_fails

from rlexp.experiment import load_config

Result = tuple[int, float, float]


def test_runs_that_ended_are_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def run(wanted: Sequence[tuple[str, int]], workers: int) -> Iterator[tuple[tuple[str, int], Result]]:
        for task, seed in wanted:
            if seed == 2:
                raise KeyboardInterrupt
            asked.append((task, seed))
            yield (task, seed), (2048, 1.5, 100.0 + seed)

    monkeypatch.setattr(zoo, "run", run)
    command = ["--tasks", "walker2d", "--results", str(tmp_path / "zoo.csv")]
    with pytest.raises(KeyboardInterrupt):
        zoo.main([*command, "--seeds", "0-2"])
    assert zoo.main([*command, "--seeds", "0-1", "3"]) == 0
    assert asked == [("walker2d", 0), ("walker2d", 1), ("walker2d", 3)]
    assert zoo.read(tmp_path / "zoo.csv") == {("walker2d", seed): (2048, 1.5, 100.0 + seed) for seed in (0, 1, 3)}
    assert "100.0, 101.0, 103.0" in capsys.readouterr().out


def test_both_are_compared_on_the_same_seeds(tmp_path: Path) -> None:
    """Hopper's are shifted: its preset was changed after some of the seeds before had run."""
    shifts = {"hopper": 10, "walker2d": 0}
    lines = [f"{task},{seed},2048,1.0,{seed * 10.0}" for task in shifts for seed in range(13)]
    (tmp_path / "zoo.csv").write_text("\n".join(["task,seed,frames,seconds,return", *lines]) + "\n", encoding="utf-8")
    results = Results(tmp_path)
    ours = {seed: Curve(np.array([512.0]), np.array([1.0]), np.array([seed * 100.0])) for seed in range(13)}
    for task in shifts:
        results.add(task, ours, load_config([f"experiment={task}"]).to_dict())
    header, _, *rows = zoo.table(tmp_path / "zoo.csv", results, [0, 1, 2]).splitlines()
    for row, (task, shift) in zip(rows, shifts.items(), strict=True):
        assert header.count("|") == row.count("|")
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        seeds = [shift + i for i in range(3)]
        assert cells[0] == task
        assert cells[1].startswith(f"{seeds[1] * 10.0} [")
        assert cells[2] == ", ".join(str(seed * 10.0) for seed in seeds)
        assert cells[3].replace(",", "").startswith(f"{seeds[1] * 100}")


def test_a_run_that_fails_loses_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(zoo, "train", one_that_fails)
    assert dict(zoo.run([("hopper", 1), ("hopper", 2)], workers=1)) == {("hopper", 2): (2048, 1.0, 2.0)}
    assert "hopper seed 1 failed: ValueError('diverged')" in capsys.readouterr().err
