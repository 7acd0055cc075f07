"""`rlexp-report`: runs in, numbers out that an independent computation gives too."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TINY, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic import config, write_run, write_sweep

from rlexp.cli.report import report
from rlexp.config import ConfigError
from rlexp.files import write_bytes
from rlexp.report import Run, group_runs, load_runs, make_report, markdown, write_report
from rlexp.report.results import compare
from rlexp.report.runs import Floats, flatten
from rlexp.report.statistics import (
    band,
    cautious_test,
    estimate,
    holm,
    interquartile_mean,
    mean,
    on_common_frames,
    permutation_test,
    probability_of_improvement,
)
from rlexp.report.tables import mixed_table, number, results_csv, verdicts


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Cells(HTMLParser):
    """The text of every table cell of a page, and what the page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True
        elif tag in ("img", "script", "link", "iframe"):
            self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("sweep")
    write_sweep(top, seeds=5)
    return top


@pytest.fixture(scope="module")
def written(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the sweep's report."""
    return write_report(make_report(load_runs([sweep])), tmp_path_factory.mktemp("written"))


def test_real_runs_become_a_report(tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "outputs"
    shutil.copytree(tiny_run, folder / "seed 7")
    for arguments in (["seed=8"], ["seed=8", "loss.clip_epsilon=0.1"]):
        done = run_command("rlexp-train", *TINY, "logger=none", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    stopped = run_command("rlexp-train", *TINY, "logger=none", "seed=9", "optim.lr=1e30", cwd=tmp_path)
    assert stopped.returncode == 1, "the run was meant to fail"

    done = run_command("rlexp-report", "outputs", "ignore=[optim,callbacks]", "threshold=5", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    report = tmp_path / "report"
    typo = run_command("rlexp-report", "outputs", "ignore=[optmi]", "out=other", cwd=tmp_path)
    assert (typo.returncode, "Did you mean optim?" in typo.stderr) == (2, True)
    open_bracket = run_command("rlexp-report", "outputs", "ignore=[optim", cwd=tmp_path)
    assert (open_bracket.returncode, "cannot be read as key=value" in open_bracket.stderr) == (2, True)
    rows = {row["group"]: row for row in read_csv(report / "table.csv")}
    assert rows.keys() == {"loss.clip_epsilon=0.1", "loss.clip_epsilon=0.2"}
    usual = rows["loss.clip_epsilon=0.2"]
    assert (usual["seeds"], usual["left_out"], usual["threshold"], usual["reached"]) == ("2", "1", "5.0", "2")
    summaries = [json.loads(path.read_text()) for path in folder.rglob("summary.json")]
    finals = {s["final"]["eval/return"] for s in summaries if s["status"] == "completed"}
    assert {float(row["final"]) for row in read_csv(report / "runs.csv") if row["final"]} == finals
    assert "(n=2)" in done.stdout
    assert "failed" in done.stdout
    assert "TrainingError" in done.stdout
    assert str(Path("report") / "index.html") in done.stdout
    assert all((report / "plots" / f"{kind}_inverted_double_pendulum.png").is_file() for kind in ("curves", "profile"))


def test_statistics_agree_with_numpy() -> None:
    rng = np.random.default_rng(3)
    strata = [rng.normal(10, 2, 8), rng.normal(0, 5, 12)]

    def middle(pooled: Floats) -> Any:
        cut = pooled.shape[-1] // 4
        return np.sort(pooled, axis=-1)[..., cut : pooled.shape[-1] - cut].mean(-1)

    for statistic, independent in ((interquartile_mean, middle), (mean, lambda pooled: pooled.mean(-1))):
        found = estimate(strata, statistic)
        resampled = np.concatenate([rng.choice(scores, (100_000, len(scores))) for scores in strata], axis=-1)
        low, high = np.quantile(independent(resampled), [0.025, 0.975])
        assert found.value == pytest.approx(independent(np.concatenate(strata)))
        # 10,000 resamples place a 2.5% quantile to within a few hundredths of the interval's width.
        assert [found.low, found.high] == pytest.approx([low, high], abs=0.05 * (high - low))
        assert estimate(strata, statistic) == found, "the same report twice gives the same interval"


def test_probability_of_improvement_counts_pairs() -> None:
    x, y = [np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0])], [np.array([2.0, 0.0]), np.array([5.0, 7.0])]
    pairs = [np.mean([(a > b) + 0.5 * (a == b) for a in of_x for b in of_y]) for of_x, of_y in zip(x, y, strict=True)]
    found = probability_of_improvement(x, y)
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_one_run_has_no_interval() -> None:
    assert estimate([np.array([3.0])], mean).low is None
    value, low, high = band([np.array([[3.0], [4.0]])], interquartile_mean)
    assert value.tolist() == low.tolist() == high.tolist() == [3.0, 4.0]


def test_curves_are_joined_where_all_runs_have_values() -> None:
    frames, values = on_common_frames([np.array([0.0, 10.0]), np.array([5.0, 20.0])], [np.array([0.0, 1.0])] * 2, 6)
    assert (frames[0], frames[-1], values.shape) == (5.0, 10.0, (6, 2))
    assert values[0].tolist() == [0.5, 0.0]


PARTS = st.fixed_dictionaries(
    {
        "env": st.sampled_from(["hopper", "inverted_double_pendulum"]),
        "seed": st.integers(0, 4),
        "clip_epsilon": st.sampled_from([0.1, 0.2]),
        "lr": st.sampled_from([1e-4, 3e-4]),
    }
)


@given(parts=st.lists(PARTS, min_size=1, max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_grouping_laws(parts: list[dict[str, object]], data: st.DataObject) -> None:
    runs = [
        Run(Path(f"/runs/{i}"), "completed", settings=dict(flatten(config(**part))), returns=np.array([1.0]))  # type: ignore[arg-type]
        for i, part in enumerate(parts)
    ]
    groups = group_runs(runs)

    def members(of: list[Run]) -> list[tuple[str, list[Path], list[Path]]]:
        return [(g.name, [r.path for r in g.runs], [r.path for r in g.left_out]) for g in group_runs(of)]

    assert members(data.draw(st.permutations(runs))) == members(runs), "the order of runs does not matter"
    assert len(groups) == len({(p["env"], p["clip_epsilon"], p["lr"]) for p in parts}), "a seed never splits a group"
    assert len({group.name for group in groups}) == len(groups), "names are unique"
    for group in groups:
        assert len({run.seed for run in group.runs}) == len(group.runs), "each seed counts once"
    assert sum(len(group.runs) + len(group.left_out) for group in groups) == len(runs), "no run gets lost"


def test_a_setting_that_was_added_since_does_not_split_a_group(tmp_path: Path) -> None:
    for seed, evaluation in enumerate([{"interval": 10}, {"interval": 10, "average": None}]):
        write_run(tmp_path / f"{seed}", config(seed=seed) | {"evaluation": evaluation}, [1.0, 2.0])
    (group,) = group_runs(load_runs([tmp_path]))
    assert len(group.runs) == 2


def test_settings_that_cannot_change_results_do_not_split_a_group() -> None:
    one, other = (flatten(config(seed=seed)) for seed in (0, 1))
    other |= {"logger._target_": "rlexp.loggers.WandbLogger", "logger.mode": "offline"}
    other |= {"threads": 2, "env.num_workers": 2}
    (group,) = group_runs([Run(Path("a"), "completed", settings=one), Run(Path("b"), "completed", settings=other)])
    assert group.name == "env.name=hopper"


def test_runs_that_chose_a_setting_are_not_averaged_with_those_that_test_it(tmp_path: Path) -> None:
    found = tmp_path / "search"
    write_run(found / "trials" / "000" / "seed_100", config(seed=100), [9.0])
    write_run(found / "trials" / "000" / "a_task" / "seed_101", config(seed=101), [9.0])
    write_run(found / "confirmation" / "000" / "seed_103", config(seed=103), [6.0])
    (found / "search.yaml").touch()
    for seed, folder in enumerate(("final", "trials")):
        write_run(tmp_path / folder / str(seed), config(seed=seed), [3.0])

    def means(*paths: Path) -> dict[str, float]:
        return {result.group.name: result.mean.value for result in make_report(load_runs(paths)).results}

    both = {"search=screening": 9.0, "search=confirmation": 6.0}
    assert means(tmp_path) == both | {"search=unset": 3.0}
    assert means(found) == both
    assert means(found / "trials") == {"env.name=hopper": 9.0}
    other = write_run(tmp_path / "other", config("inverted_double_pendulum"), [3.0])
    assert means(found / "trials", other).keys() == {
        "env.name=hopper, search=screening",
        "env.name=inverted_double_pendulum, search=unset",
    }


def test_averaged_runs_of_different_code_or_budgets_are_named(tmp_path: Path) -> None:
    for seed, (commit, torch, budgets) in enumerate(
        [
            ("abc123456", "2.5", [2000]),
            ("abc123456", "2.5", [2000, 2000]),
            ("def567890", "2.6", [1000, 2000]),
        ]
    ):
        run = write_run(tmp_path / "runs" / str(seed), config(seed=seed), [1.0, 2.0])
        versions = {"torch": torch, "numpy": "2.0", "mujoco": None, "wandb": str(seed)}
        sessions = [{"total_frames": budget, "versions": versions} for budget in budgets]
        origin = {"git": {"commit": commit, "dirty": seed == 1}, "sessions": sessions, "versions": versions}
        (run / "metadata.json").write_text(json.dumps(origin))
    runs = load_runs([tmp_path])
    said = (
        "commit: abc1234 (1), abc1234 with changes (1), def5678 (1); total_frames: 2,000 (2), 1,000 then 2,000 (1); "
        "torch: 2.5 (2), 2.6 (1)"
    )
    write_report(make_report(runs), tmp_path / "report")
    assert f"| {said} |" in (tmp_path / "report" / "table.md").read_text()
    assert ["env.name=hopper", said] in Cells((tmp_path / "report" / "index.html").read_text()).rows
    assert [row["commit"] for row in read_csv(tmp_path / "report" / "runs.csv")][2] == "def5678"
    assert "different code" not in markdown(make_report(runs[:1]))


def test_the_code_of_each_session_is_told_apart(tmp_path: Path) -> None:
    made: list[list[str | None]] = [["a"], ["a", "b with changes 1234"], ["b with changes 1234"], [None]]
    for seed, codes in enumerate(made):
        run = write_run(tmp_path / "runs" / str(seed), config(seed=seed), [1.0, 2.0])
        sessions: list[dict[str, Any]] = [{"total_frames": 2000, "versions": {}, "code": code} for code in codes]
        (run / "metadata.json").write_text(json.dumps({"git": None, "sessions": sessions, "versions": {}}))
    ((_, said),) = mixed_table(make_report(load_runs([tmp_path])).groups).rows
    assert said == "commit: a (1), a then b with changes 1234 (1), b with changes 1234 (1), unknown (1)"


def test_the_pages_numbers_are_the_csvs(written: list[Path]) -> None:
    folder = next(path.parent for path in written if path.name == "index.html")
    page = Cells((folder / "index.html").read_text(encoding="utf-8"))
    shown = {row[0]: row for row in page.rows if row and row[0].startswith("env.name=") and len(row) == 10}
    rows = read_csv(folder / "table.csv")
    assert len(rows) == len(shown) == 16
    for row in rows:
        cells = shown[row["group"]]
        for place, kind in enumerate(("iqm", "mean", "median"), start=2):
            value, low, high = (number(float(row[key])) for key in (kind, f"{kind}_low", f"{kind}_high"))
            assert cells[place] == f"{value} [{low}, {high}]"
        assert cells[1] == row["seeds"]
        assert cells[5] == number(float(row["best"]))
        assert cells[6] == f"{row['reached']}/{row['seeds']} ≥ {float(row['threshold']):,.0f}"
        finals = [float(r["final"]) for r in read_csv(folder / "runs.csv") if r["group"] == row["group"]]
        assert float(row["mean"]) == pytest.approx(np.mean(finals))
    plots = [file for file in written if file.suffix == ".png"]
    images = [source for source in page.loads if source.startswith("data:image/png;base64,")]
    assert len(images) == len(plots) - 2, "learning curves are drawn by the page itself"
    assert all(source.startswith("data:") for source in page.loads), "the page loads nothing from elsewhere"
    # Learning curves and settings for each environment; profiles and improvements for both together as well.
    assert len(plots) == 2 + 3 + 3 + 2


def test_what_is_not_completed_is_listed_and_not_averaged(tmp_path: Path) -> None:
    for seed, final in enumerate((100.0, 200.0, 300.0)):
        write_run(tmp_path / f"ok{seed}", config(seed=seed), [1.0, final])
    write_run(tmp_path / "again", config(seed=2), [1.0, 400.0], started="2031-01-01T00:00:00+00:00")
    write_run(tmp_path / "failed", config(seed=3), [9e9], status="failed")
    write_run(tmp_path / "killed", config(seed=4), [9e9], status=None)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"frames": 20')
    torn = write_run(tmp_path / "torn", config(seed=5), [9e9, 9e9])
    (torn / "metrics.jsonl").write_text("{}\n")
    (write_run(tmp_path / "no config", config(seed=6), [9e9]) / "config.yaml").write_text("[")
    write_run(tmp_path / "alone", config(seed=0, lr=1.0), [9e9], status="stopped")

    report = make_report(load_runs([tmp_path, tmp_path / "ok0"]))

    (result,) = report.results
    assert result.mean.value == pytest.approx((100 + 200 + 400) / 3)
    assert {run.path.name: run.status for run in report.left_out} == {
        "ok2": "superseded", "failed": "failed", "killed": "unfinished", "torn": "unreadable",
        "no config": "unreadable", "alone": "stopped",
    }  # fmt: skip
    text = markdown(report)
    assert all(run.path.name in text for run in report.left_out)
    assert "RuntimeError: diverged" in text
    assert "(n=3)" in text
    write_report(report, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert all(str(run.path) in page for run in report.left_out)
    assert "fewer than 5 seeds" in page


def test_thresholds(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(seed=0), [1000.0, 4000.0, 2000.0])
    write_run(tmp_path / "b", config(seed=1), [3000.0, 3000.0, 3000.0])
    runs = load_runs([tmp_path])
    (registered,) = make_report(runs).results
    assert (registered.threshold, registered.reached, registered.frames_to_threshold) == (3800.0, 1, None)
    (chosen,) = make_report(runs, {"hopper": 3000.0}).results
    assert (chosen.reached, chosen.frames_to_threshold, chosen.seconds_to_threshold) == (2, 1500.0, 0.75)
    assert make_report(runs, 1.0).results[0].frames_to_threshold == 1000.0
    for none in (None, {"hopper": None}):
        without = make_report(runs, none)
        assert without.results[0].threshold is None
        assert "threshold |" not in markdown(without)


@pytest.mark.parametrize(
    ("seeds", "better", "said"),
    [
        (6, 50.0, "hopper: optim.lr=0.2 scores higher (P(optim.lr=0.2 > optim.lr=0.1) = 1.000 [1.000, 1.000]"),
        (6, 0.5, "hopper: these seeds do not show a difference (P(optim.lr=0.2 > optim.lr=0.1) = 0.583 ["),
        (4, 50.0, "hopper: fewer than 5 seeds are too few to tell (P(optim.lr=0.2 > optim.lr=0.1) = 1.000 (n=4) ["),
    ],
)
def test_each_pair_of_configurations_has_a_verdict(tmp_path: Path, seeds: int, better: float, said: str) -> None:
    for seed in range(seeds):
        for lr, gain in ((0.1, 0.0), (0.2, better)):
            write_run(tmp_path / f"{seed}_{lr}", config(seed=seed, lr=lr), [seed + gain])
    assert said in markdown(make_report(load_runs([tmp_path])))


@pytest.mark.parametrize(
    ("failed", "seeds", "said"),
    [
        (0, "10", "optim.lr=0.2 scores higher"),
        (1, "9 of 10", "optim.lr=0.2 scores higher"),
        (5, "5 of 10", "these seeds do not show a difference"),
        (9, "1 of 10", "fewer than 5 seeds are too few to tell"),
    ],
)
def test_what_failed_is_not_forgotten(tmp_path: Path, failed: int, seeds: str, said: str) -> None:
    for seed, (lr, final) in itertools.product(range(10), ((0.1, 2000.0), (0.2, 3000.0))):
        status = "failed" if lr == 0.2 and seed < failed else "completed"
        write_run(tmp_path / f"{seed}_{lr}", config(seed=seed, lr=lr), [final + seed], status=status)
    write_run(tmp_path / "a seed that was trained again", config(seed=0, lr=0.1), [9e9], status="failed")
    made = make_report(load_runs([tmp_path]))
    row = next(line for line in markdown(made).splitlines() if line.startswith("| optim.lr=0.2"))
    assert row.split("|")[2].strip() == seeds
    (verdict,) = verdicts(made.comparisons)
    assert verdict.startswith(f"hopper: {said} (P(optim.lr=0.2 > optim.lr=0.1) = 1.000")
    left_out = f"; leaves out {failed} incomplete run{'s' * (failed > 1)} of optim.lr=0.2)." if failed else ")."
    assert verdict.endswith(left_out)


def test_a_difference_that_incomplete_runs_would_reverse_is_none() -> None:
    x, y = [np.arange(6.0) + 6], [np.arange(6.0)]
    assert cautious_test(x, y, ([0], [0])) == permutation_test(x, y) < 0.01
    assert cautious_test(x, y, ([1], [0])) == permutation_test([np.append(x[0], -np.inf)], y) > permutation_test(x, y)
    assert cautious_test(x, y, ([0], [60])) == permutation_test(x, y), "it would be clearer still"
    assert cautious_test(x, y, ([60], [0])) == 1


def test_exchanges_of_runs_are_an_exact_test_of_ranks() -> None:
    rng = np.random.default_rng(1)
    for n, m, tolerance in ((5, 5, 1e-12), (10, 10, 1e-12), (5, 8, 1e-12), (12, 12, 0.02)):
        x, y = rng.normal(0.7, 1, n), rng.normal(0, 1, m)
        exact = stats.mannwhitneyu(x, y, method="exact").pvalue
        assert permutation_test([x], [y]) == pytest.approx(exact, abs=tolerance)
        assert permutation_test([y], [x]) == pytest.approx(exact, abs=tolerance)
    assert permutation_test([np.ones(5)], [np.ones(5)]) == 1
    # Environments add up: what one of them hints at, six show.
    x, y = np.array([1.0, 3, 5, 7, 9]), np.array([0.0, 2, 4, 4.5, 6])
    alone, six = (permutation_test([x] * k, [y] * k) for k in (1, 6))
    assert six < 0.05 < alone


def test_p_values_are_adjusted_as_holm_does() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]


def test_of_equal_methods_one_seldom_scores_higher(tmp_path: Path) -> None:
    """Of eight that do not differ the best is so by chance, and is not said to be better than the others."""
    rng = np.random.default_rng(0)
    for seed, lr in itertools.product(range(5), range(1, 9)):
        write_run(tmp_path / f"{seed}_{lr}", config(seed=seed, lr=lr / 10), [1.0])
    runs = load_runs([tmp_path])
    said = 0
    for _ in range(30):
        groups = group_runs([replace(run, returns=rng.normal(size=1)) for run in runs])
        (comparison,) = compare(groups)
        assert len(comparison.improvements) == 7
        said += any("scores higher" in verdict for verdict in verdicts([comparison]))
    assert said <= 4  # one or two are expected; by intervals that are not corrected, two thirds of them


@pytest.mark.parametrize(
    ("environments", "variants", "seeds", "said"),
    [
        (1, 5, 5, "these seeds are too few to tell among so many pairs"),
        (1, 5, 6, "optim.lr=4 scores higher"),
        (7, 2, 5, "these seeds are too few to tell among so many pairs"),
        (6, 2, 5, "optim.lr=1 scores higher"),
    ],
)
def test_the_clearest_difference_is_judged_among_all_pairs(
    environments: int, variants: int, seeds: int, said: str
) -> None:
    """Of five runs and five the smallest p is 2/252, of six and six 2/924."""
    runs = []
    for env, lr, seed in itertools.product(range(environments), range(variants), range(seeds)):
        values = flatten(config(seed=seed, lr=lr)) | {"env.name": f"env{env}"}
        returns = np.array([10.0 * lr + seed])
        runs.append(Run(Path(f"/runs/{env}_{lr}_{seed}"), "completed", settings=values, returns=returns))
    alone = compare(group_runs(runs))[:environments]
    assert {verdict.partition(" (P(")[0].partition(": ")[2] for verdict in verdicts(alone)} == {said}
    pairs = environments * variants * (variants - 1) // 2
    found = [pair.p for comparison in alone for pair in comparison.improvements]
    assert found == pytest.approx([pairs * 2 / comb(2 * seeds, seeds)] * len(found))


def test_classes_of_one_name_are_told_apart_by_their_modules(tmp_path: Path) -> None:
    for seed, (place, path) in itertools.product(range(5), enumerate(("torchrl.ClipPPOLoss", "my_lab.ClipPPOLoss"))):
        values = config(seed=seed) | {"loss": {"loss_module": {"_target_": path}}}
        write_run(tmp_path / f"{path}_{seed}", values, [100.0 + 100 * place + seed])
    made = make_report(load_runs([tmp_path]))
    names = {group.name for group in made.groups}
    assert names == {"loss.loss_module=my_lab.ClipPPOLoss", "loss.loss_module=torchrl.ClipPPOLoss"}
    assert {round(result.mean.value) for result in made.results} == {102, 202}
    assert len(made.comparisons[0].improvements) == 1
    rows = list(csv.DictReader(results_csv(made.results, made.groups).splitlines()))
    assert sorted(float(row["mean"]) for row in rows) == [102, 202]


@given(st.floats(1e-8, 1e8), st.booleans())
def test_numbers_have_at_least_three_significant_digits(size: float, negative: bool) -> None:
    value = -size if negative else size
    text = number(value).replace("\N{MINUS SIGN}", "-").replace(",", "")
    assert abs(float(text) - value) <= 0.005000001 * size


def test_numbers_are_read_at_a_glance() -> None:
    shown = [number(value) for value in (0.0, 1e-17, 0.0004, 0.0123, 0.5, 9.99999, 3e-6, -0.00049)]
    minus = "\N{MINUS SIGN}"
    assert shown == ["0.000", "0.000", "0.000400", "0.0123", "0.500", "10.000", f"3.00e{minus}06", f"{minus}0.000490"]


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    written: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(written[0].parent, tmp_path / "report")
    before = {path: path.read_bytes() for path in (tmp_path / "report").rglob("*") if path.is_file()}
    write_run(tmp_path / "runs" / "a", config(), [3.0])
    whole = write_bytes

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == ".runs.csv.tmp":
            raise OSError(errno.ENOSPC, "no space left")
        whole(path, content)

    monkeypatch.setattr("rlexp.report.output.write_bytes", full_disk)
    with pytest.raises(ConfigError, match="no space left"):
        report([str(tmp_path / "runs"), f"out={tmp_path / 'report'}"])
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.undo()
    report([str(tmp_path / "runs"), f"out={tmp_path / 'report'}"])
    assert b"3.000" in (tmp_path / "report" / "table.md").read_bytes()
    assert not list((tmp_path / "report").rglob("*.tmp"))


def test_a_folder_whose_name_is_no_text_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bad\udcff", config(), [3.0])
    assert report([str(run), f"out={tmp_path / 'report'}"]) == 0
    assert "bad" in (tmp_path / "report" / "index.html").read_text()


def test_runs_behind_links_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "runs" / "real", config(), [1.0])
    moved = write_run(tmp_path / "elsewhere", config(seed=1), [1.0])
    (tmp_path / "runs" / "other").symlink_to(moved)
    assert [run.path.name for run in load_runs([tmp_path / "runs"])] == ["real"]
    assert "runs/other is a link" in caplog.text


def test_a_reports_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", config(), [1.0])
    for out in ("my report #2", "007"):
        assert report(["runs", f"out={out}", f"ignore=[{','.join(['optim.lr'] * 40)}]"]) == 0
        assert (tmp_path / out / "table.csv").exists()


def test_environments_that_share_a_name_are_not_compared(tmp_path: Path) -> None:
    own: dict[str, dict[str, Any]] = {
        "Pendulum-v1": {"name": "torchrl", "make": {"_target_": "torchrl.envs.GymEnv", "env_name": "Pendulum-v1"}},
        "HalfCheetah-v5": {
            "name": "torchrl",
            "make": {"_target_": "torchrl.envs.GymEnv", "env_name": "HalfCheetah-v5"},
        },
        "v4": {"name": "double", "id": "Double-v4"},
        "v5": {"name": "double", "id": "Double-v5"},
        "walk": {"name": "walker_walk", "domain": "walker", "task": "walk"},
    }
    for seed, lr, (folder, env) in itertools.product(range(5), (0.1, 0.2), own.items()):
        if folder == "walk" or lr == 0.1:
            values = config(seed=seed, lr=lr) | {"env": {**env, "num_envs": 1}}
            write_run(tmp_path / f"{folder}_{seed}_{lr}", values, [1.0 + lr + seed])
    made = make_report(load_runs([tmp_path]))
    names = ["double:Double-v4", "double:Double-v5", "torchrl:HalfCheetah-v5", "torchrl:Pendulum-v1", "walker_walk"]
    assert sorted({group.environment for group in made.groups}) == names
    assert [comparison.name for comparison in made.comparisons] == ["walker_walk"]


def test_names_are_escaped_for_their_format(tmp_path: Path) -> None:
    values = config()
    values["env"]["name"] = r"a_b|<i>&![x](y) \|"
    write_run(tmp_path / "run", values, [-12.5])
    write_report(make_report(load_runs([tmp_path])), tmp_path / "report")
    escaped = r"a\_b\textbar{}\textless{}i\textgreater{}\&!{[}x{]}(y) \textbackslash{}\textbar{}"
    assert escaped in (tmp_path / "report" / "table.tex").read_text()
    assert r"a_b\|\<i>\&\![x]\(y) \\\|" in (tmp_path / "report" / "table.md").read_text()
    assert "a_b|&lt;i&gt;&amp;" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "name a run's folder"),
        (["nowhere"], 2, "nowhere"),
        (["runs", "treshold=3"], 2, "Did you mean threshold?"),
        (["runs", "threshold.hoper=3"], 2, "hopper"),
        (["runs", "threshold=high"], 2, "threshold"),
        (["empty"], 1, "rlexp-train writes one"),
        (["unfinished"], 1, "unfinished"),
        (["mixed"], 0, "metrics.jsonl, line 1"),
        (["--help"], 0, ""),
    ],
)
def test_wrong_use_is_reported_with_its_remedy(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "runs" / "a", config(), [1.0])
    write_run(tmp_path / "unfinished" / "a", config(), [1.0], status=None)
    write_run(tmp_path / "mixed" / "a", config(), [1.0])
    (write_run(tmp_path / "mixed" / "b", config(seed=1), [1.0]) / "metrics.jsonl").write_text("not a row\n")
    done = run_command("rlexp-report", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "report").exists() == (code == 0 and arguments != ["--help"])


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    for seed, clip_epsilon in itertools.product((0, 1), (0.1, 0.2)):
        write_run(tmp_path / f"{seed}_{clip_epsilon}", config("hopper", seed, clip_epsilon), [1.0, 2.0])
    code = (
        "import sys; from rlexp.cli.report import report; "
        f"report([{str(tmp_path)!r}, 'out={tmp_path / 'report'}']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_new_report_leaves_nothing_of_the_old(written: list[Path], tmp_path: Path) -> None:
    folder = next(path.parent for path in written if path.name == "index.html")
    shutil.copytree(folder, tmp_path / "report")
    write_run(tmp_path / "one", config(), [1.0])
    files = write_report(make_report(load_runs([tmp_path / "one"])), tmp_path / "report")
    left = {path for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert left == {*files, tmp_path / "report" / ".rlexp-report"}


def test_files_that_no_report_wrote_are_not_touched(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (run / "plots").mkdir()
    (run / "plots" / "overview.png").write_bytes(b"mine")
    made = make_report(load_runs([run]))
    for _ in range(2):
        write_report(made, run)
    assert (run / "plots" / "overview.png").read_bytes() == b"mine"

    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "table.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"table\.tex, which is of no report"):
        report([str(run), f"out={paper}"])
    assert {path.name: path.read_text() for path in paper.iterdir()} == {"table.tex": "mine"}

    listed = ["../run/config.yaml", "plots/../../run/config.yaml", str(run / "config.yaml"), "table.tex"]
    (paper / ".rlexp-report").write_text("\n".join(listed))
    write_report(made, paper)  # a stranger's list removes nothing elsewhere
    assert (run / "config.yaml").is_file()
