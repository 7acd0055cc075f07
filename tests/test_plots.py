"""Figures are drawn in one style, whatever the user's, or a stranger's, ``matplotlibrc`` says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import optuna
import pytest
from synthetic import write_sweep

from rlexp.plots import plot_training
from rlexp.report import load_runs, make_report, page
from rlexp.search import figures


def of_a_run(folder: Path) -> dict[str, bytes]:
    rows = [{"frames": n, "eval/return": n, "train/reward": 1.0, "train/step_count": n} for n in range(1, 4)]
    return {path.name: path.read_bytes() for path in plot_training(rows, folder)}


def of_a_report(folder: Path) -> dict[str, bytes]:
    if not folder.exists():
        write_sweep(folder, seeds=2, rows=5)
    report = make_report(load_runs([folder]))
    return {figure.file: figure.png for figure in page.draw(report, page.learning_curves(report))}


def of_a_search(folder: Path) -> dict[str, bytes]:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda trial: trial.suggest_float("optim.lr", 0, 1), 5)
    return figures.draw(study)


@pytest.mark.parametrize("draw", [of_a_run, of_a_report, of_a_search])
def test_a_style_of_the_user_changes_nothing(draw: Callable[[Path], dict[str, bytes]], tmp_path: Path) -> None:
    expected = draw(tmp_path / "plots")
    with mpl.rc_context({"text.usetex": True, "text.latex.preamble": r"\input{x}", "figure.facecolor": "black"}):
        assert draw(tmp_path / "plots") == expected
        assert mpl.rcParams["figure.facecolor"] == "black"
    assert expected
