"""``benchmarks/zoo.py``: which runs are left, what is kept of those that ended, and the numbers of its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zoo
from learning import Curve, Results

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
    command = ["--tasks", "hopper", "--results", str(tmp_path / "zoo.csv")]
    with pytest.raises(KeyboardInterrupt):
        zoo.main([*command, "--seeds", "0-2"])
    assert zoo.main([*command, "--seeds", "0-1", "3"]) == 0
    assert asked == [("hopper", 0), ("hopper", 1), ("hopper", 3)]
    assert zoo.read(tmp_path / "zoo.csv") == {("hopper", seed): (2048, 1.5, 100.0 + seed) for seed in (0, 1, 3)}
    assert "100.0, 101.0, 103.0" in capsys.readouterr().out


def test_both_are_compared_on_the_same_seeds(tmp_path: Path) -> None:
    lines = ["task,seed,frames,seconds,return", *(f"hopper,{seed},2048,1.0,{seed * 10.0}" for seed in range(3))]
    (tmp_path / "zoo.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = Results(tmp_path)
    ours = {seed: Curve(np.array([512.0]), np.array([1.0]), np.array([seed * 100.0])) for seed in range(10)}
    results.add("hopper", ours, load_config(["experiment=hopper"]).to_dict())
    header, _, row = zoo.table(tmp_path / "zoo.csv", results, [0, 1, 2]).splitlines()
    assert header.count("|") == row.count("|")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("10.0 [")
    assert cells[3].startswith("100.0 [")
    assert (cells[2], cells[4]) == ("0.0, 10.0, 20.0", "0.0, 100.0, 200.0")
