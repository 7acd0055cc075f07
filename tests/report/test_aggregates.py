"""Aggregates over environments, of scores on a given scale, against an independent computation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import config, write_run

from rlexp.cli.report import report
from rlexp.config import ConfigError
from rlexp.report import load_runs, make_report, markdown, tables, write_report
from rlexp.report.runs import Floats

REFERENCES = {"hopper": (20.0, 3000.0), "inverted_double_pendulum": (50.0, 9000.0)}
TEN = np.random.default_rng(5).normal(0.9, 0.4, (2, 2, 10))  # [method, task, run]

# Agarwal et al. (2021), of scores [..., task, run].
PAPERS: dict[str, Callable[[Floats], Floats]] = {
    "IQM": lambda scores: np.sort(scores.reshape(*scores.shape[:-2], -1))[..., 5:15].mean(-1),
    "median": lambda scores: np.median(scores.mean(-1), axis=-1),
    "mean": lambda scores: scores.mean((-2, -1)),
    "optimality gap": lambda scores: 1 - np.minimum(scores, 1).mean((-2, -1)),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two environments, ten seeds."""
    top = tmp_path_factory.mktemp("runs")
    for method, clip_epsilon in enumerate((0.1, 0.2)):
        for task, (env, (zero, one)) in enumerate(REFERENCES.items()):
            for seed, score in enumerate(TEN[method, task]):
                path = top / str(method) / env / str(seed)
                write_run(path, config(env, seed, clip_epsilon), [-1e9, zero + (one - zero) * score])
    return top


def test_aggregates_are_the_papers(runs: Path) -> None:
    overall = make_report(load_runs([runs]), reference=REFERENCES).overall
    assert overall is not None
    assert overall.references == REFERENCES
    rng = np.random.default_rng(0)
    for method, variant in enumerate(("loss.clip_epsilon=0.1", "loss.clip_epsilon=0.2")):
        scores = TEN[method]
        drawn = np.stack([rng.choice(of_task, (20_000, 10)) for of_task in scores], axis=1)
        for name, statistic in PAPERS.items():
            found = overall.aggregates[variant][name]
            low, high = np.quantile(statistic(drawn), [0.025, 0.975])
            assert found.value == pytest.approx(float(statistic(scores)))
            assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    (pair,) = overall.improvements
    first, second = (TEN[int(variant[-1]) - 1] for variant in (pair.x, pair.y))
    assert pair.probability.value == pytest.approx((first[:, :, None] > second[:, None, :]).mean())


def test_a_method_without_a_run_in_one_environment_is_named(tmp_path: Path) -> None:
    """A comparison over environments cannot have it, and must not look complete; nor may the section be missing."""
    both = ["hopper", "inverted_double_pendulum"]
    for clip_epsilon, envs in ((0.1, both), (0.2, both), (0.3, ["hopper"])):
        for env in envs:
            for seed in range(5):
                path = tmp_path / str(clip_epsilon) / env / str(seed)
                write_run(path, config(env, seed, clip_epsilon), [0.0, 100 * clip_epsilon + seed])
    found = make_report(load_runs([tmp_path]))
    assert found.overall is not None
    said = "leaves some out: loss.clip_epsilon=0.3 has no completed run in inverted_double_pendulum."
    assert said in markdown(found)
    third = config("hopper", 0, 0.1)
    third["env"]["name"] = "third"
    write_run(tmp_path / "third", third, [0.0, 1.0])
    found = make_report(load_runs([tmp_path]))
    assert found.overall is None
    assert "There is no comparison over environments: loss.clip_epsilon=0.2 has no completed run in third" in markdown(
        found
    )


def test_names_are_no_arguments_of_latex_and_no_links_of_markdown() -> None:
    table = tables.Table(("name",), (("[1cm] *",), ("https://evil.example &lt; $x$ www.evil.example",)))
    assert r"{[}1cm{]} {*}" in tables.to_latex(table)
    assert r"https\://evil.example \&lt; \$x\$ www\.evil.example" in tables.to_markdown(table)


def test_one_method_has_aggregates_where_the_scale_is_given(runs: Path, tmp_path: Path) -> None:
    of_one = load_runs([runs / "0"])
    assert make_report(of_one).overall is None, "no scale but the method's own"
    made = make_report(of_one, reference=REFERENCES)
    text = markdown(made)
    assert "optimality gap" in text
    assert "the returns given (hopper 20.00 and 3,000.0; inverted_double_pendulum 50.00 and 9,000.0)" in text
    files = {file.name for file in write_report(made, tmp_path)}
    assert "profile_all_environments.png" in files
    assert not any("improvement" in name for name in files)
    assert "optimality gap" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_environments_with_unequal_numbers_of_runs_are_named(runs: Path) -> None:
    found = load_runs([runs])
    for left_out, said in ((0, False), (6, True)):
        failed = [replace(run, status="failed") for run in found[:left_out]]
        text = markdown(make_report([*failed, *found[left_out:]], reference=REFERENCES))
        assert ("those with more weigh more in the IQM" in text) == said
        assert text.count("4 of 10") == 2 * said, "in both tables"


def test_references_are_of_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"reference.{env}=[{zero},{one}]" for env, (zero, one) in REFERENCES.items()]
    assert report([str(runs), f"out={tmp_path}", *given]) == 0
    rows = list(csv.reader(line.strip("| ") for line in capsys.readouterr().out.splitlines() if "clip_epsilon" in line))
    overall = make_report(load_runs([runs]), reference=REFERENCES).overall
    assert overall is not None
    shown = f"{overall.aggregates['loss.clip_epsilon=0.1']['optimality gap'].value:.3f}"
    assert any(shown in "".join(row) for row in rows)


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        (["reference.hopper=[20,3000]"], "reference.inverted_double_pendulum", "is missing"),
        (["reference.hopper=[20,3000]", "reference.hoper=[1,2]"], "reference.hoper", "no run has this environment"),
        (["reference.hopper=[3000,20]"], "reference.hopper=", "must be below the second"),
        (["reference.hopper=[20]"], "reference.hopper=", "at least 2"),
    ],
)
def test_references_that_do_not_fit_are_refused(
    runs: Path, tmp_path: Path, given: list[str], key: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        report([str(runs), f"out={tmp_path / 'report'}", *given])
    assert key in str(raised.value)
    assert said in str(raised.value)
    assert not (tmp_path / "report").exists()
