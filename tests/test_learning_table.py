"""``benchmarks/learning.py``: what it runs, what it keeps, and the numbers of its table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import gymnasium
import learning
import numpy as np
import pytest
from commands import TINY, rows_of
from learning import Curve, Results

from rlexp.experiment import load_config

ROOT = Path(__file__).parent.parent
TASK = "inverted_pendulum"


def curves(finals: list[float]) -> dict[int, Curve]:
    return {
        seed: Curve(np.array([512.0, 1024.0]), np.array([1.0, 2.0 + seed]), np.array([9_999.0, final]))
        for seed, final in enumerate(finals)
    }


def cells(results: Results, seeds: list[int]) -> list[str]:
    row = learning.table(results, [TASK], seeds).splitlines()[2]
    return [cell.strip() for cell in row.strip("|").split("|")]


def numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,.]*\d", cell)]


def test_a_task_whose_preset_was_changed_has_other_seeds(tmp_path: Path) -> None:
    results, seeds = Results(tmp_path), [0, 1]
    results.add("hopper", curves([5.0] * 11), load_config(["experiment=hopper"]).to_dict())
    (row,) = (line for line in learning.table(results, ["hopper"], seeds).splitlines() if "hopper" in line)
    assert "| 5.0; missing: 11 |" in row


def test_runs_are_kept_once_and_seeds_without_a_run_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    brief = [*TINY, "total_frames=512", "evaluation.interval=256", "evaluation.episodes=2"]
    command = ["--tasks", TASK, "--results", "results", "--set", *brief]
    assert learning.main([*command, "--seeds", "0", "2"]) == 0
    runs = {int(path.parent.name): path.parent for path in tmp_path.glob("outputs/learning/*/*/metrics.jsonl")}
    kept = Results(tmp_path / "results").read(TASK)
    assert sorted(kept) == [0, 2]
    for job, seed in enumerate((0, 2)):
        rows = [row for row in rows_of(runs[job], timings=True) if "eval/return" in row]
        assert kept[seed].frames.tolist() == [row["frames"] for row in rows] == [256, 512]
        assert kept[seed].returns.tolist() == [row["eval/return"] for row in rows]
        assert kept[seed].seconds[-1] == pytest.approx(rows[-1]["time/collect"] + rows[-1]["time/update"], abs=0.06)
    before = (tmp_path / "results" / f"{TASK}.csv").read_bytes()

    assert learning.main([*command, "--seeds", "0", "2"]) == 0  # the same command runs nothing again
    assert learning.main([*command, "--seeds", "0-2", "--no-run", "--figure", "figure.png"]) == 0
    assert "missing: 1" in capsys.readouterr().out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("outputs/learning/*/*/metrics.jsonl"))) == 2
    assert (tmp_path / "results" / f"{TASK}.csv").read_bytes() == before

    with pytest.raises(SystemExit):  # results of other settings are never mixed
        learning.main([*command, "optim.lr=1e-3", "--seeds", "1"])
    assert "optim.lr" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        learning.main(["--set", "optim.lr=1e-3"])
    assert "--results" in capsys.readouterr().err


def test_statistics_are_those_of_the_last_evaluations(tmp_path: Path) -> None:
    scores = [1200.0, 3100.0, 2900.0, 3300.0, 3000.0, 2500.0, 3200.0, 400.0, 3050.0, 2950.0]
    results = Results(tmp_path)
    settings = load_config(learning.preset(TASK)).to_dict()
    results.add(TASK, curves(scores[:4]), settings)
    results.add(TASK, dict(list(curves(scores).items())[4:]), settings)
    _, mean, iqm, every, frames, _, _ = cells(results, list(range(10)))
    assert numbers(every) == scores
    assert frames == "1,024"
    middle = sorted(scores)[2:8]  # of ten runs two are cut off at each end
    drawn = np.random.default_rng(1).choice(scores, (100_000, 10))
    for cell, value, resampled in (
        (mean, np.mean(scores), drawn.mean(1)),
        (iqm, np.mean(middle), np.sort(drawn, 1)[:, 2:8].mean(1)),
    ):
        found, low, high = numbers(cell)
        assert found == pytest.approx(value, abs=0.51)
        assert (low, high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), rel=0.03)


def test_aggregates_are_over_the_tasks_whose_seeds_have_all_finished(tmp_path: Path) -> None:
    results = Results(tmp_path)
    scores = np.random.default_rng(2).normal(0.9, 0.2, (3, 10))  # [task, seed]
    tasks = ("swimmer", "pusher", "walker2d")
    for task, normalised in zip(tasks, scores, strict=True):
        zero, one = learning.scale()[task]
        returns = [float(zero + (one - zero) * score) for score in normalised]
        results.add(
            task, curves(returns[: 9 if task == "walker2d" else 10]), load_config(learning.preset(task)).to_dict()
        )
    assert learning.aggregates(results, ["swimmer", "walker2d"], range(10)) == "", "one task alone is no aggregate"
    text = learning.aggregates(results, tasks, range(10))
    assert "without walker2d" in text
    cells = [numbers(cell)[0] for cell in text.splitlines()[-1].strip("|").split("|")]
    both = scores[:2]
    expected = [
        np.sort(both.ravel())[5:15].mean(),
        np.median(both.mean(1)),
        both.mean(),
        1 - np.minimum(both, 1).mean(),
    ]
    assert cells == pytest.approx([*expected, (both >= 1).mean()], abs=0.006)


def test_the_scale_is_from_random_actions_to_the_best_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = learning.scale()
    assert scale.keys() == set(learning.SUITES["mujoco"])
    assert all(zero < one for zero, one in scale.values())
    assert scale["half_cheetah"][1] == 7185
    monkeypatch.setattr(learning, "HERE", tmp_path)
    learning.measure_random([TASK], 100)
    with (tmp_path / "random.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["score"]) == pytest.approx(scale[TASK][0], rel=0.05)
    env = gymnasium.make("InvertedPendulum-v5")
    assert (row["env"], row["seeds"]) == ("InvertedPendulum-v5", "0-99")
    env.reset(seed=99)
    env.action_space.seed(99)
    steps = 1  # each but the last has a reward of 1
    while not env.step(env.action_space.sample())[2]:
        steps += 1
    assert learning._random_return(env, 99) == steps - 1


def test_the_page_shows_the_results_there_are(tmp_path: Path) -> None:
    page = ROOT / "docs" / "learning.md"
    written = tmp_path / "page.md"
    written.write_text(page.read_text())
    results = Results(ROOT / "benchmarks" / "results")
    for suite, tasks in learning.SUITES.items():
        learning.insert(written, learning.table(results, tasks, range(10)), learning.mark(suite))
    assert written.read_text() == page.read_text()
