"""A search over several tasks, whose best trials are trained again on fresh seeds, by one process or several."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import optuna
import pytest
import yaml
from commands import TINY, launch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from rlexp import load_config
from rlexp.cli.search import _plan_of, search
from rlexp.config import ConfigError, option_text
from rlexp.experiment import ExperimentConfig
from rlexp.report import load_runs
from rlexp.runs.rundir import RunDir
from rlexp.search.config import SearchConfig, TaskConfig
from rlexp.search.confirmation import chosen, confirm, confirmed, confirmed_before
from rlexp.search.folder import SearchDir, SearchPlan
from rlexp.search.protocol import protocol

TASKS = {"pole": ("inverted_pendulum", 2.0, 12.0), "two": ("inverted_double_pendulum", 30.0, 90.0)}
SEARCH = [
    *(*TINY, "total_frames=512", "evaluation.episodes=1", "checkpoint.interval=256", "logger=none"),
    *("~search.space.minibatch_size", "search.space.num_epochs.low=1", "search.space.num_epochs.high=2"),
    *("search.trials=3", "search.seeds=1", "search.confirm=2", "search.confirm_seeds=2", "dir=found"),
    *(
        f"search.tasks.{name}={{overrides:['env={env}'],random:{zero},reference:{one}}}"
        for name, (env, zero, one) in TASKS.items()
    ),
]


def start(arguments: list[str], cwd: Path) -> Any:
    return launch(arguments, cwd, "search")


def finish(arguments: list[str], cwd: Path) -> str:
    process = start(arguments, cwd)
    process.join(120)
    assert process.exitcode == 0, (cwd / "output.txt").read_text()
    return (cwd / "output.txt").read_text()


def trials_of(folder: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    found: list[FrozenTrial] = optuna.load_study(study_name="search", storage=storage).trials
    return found


def finals(folder: Path) -> dict[tuple[str, int | None], float]:
    """The final evaluation of every run below a folder, by task and seed."""
    names = {env: name for name, (env, _, _) in TASKS.items()}
    return {(names[str(run.settings["env.name"])], run.seed): run.final for run in load_runs([folder])}


def score(returns: dict[tuple[str, int | None], float]) -> float:
    scaled: dict[str, list[float]] = {name: [] for name in TASKS}
    for (name, _), value in returns.items():
        _, zero, one = TASKS[name]
        scaled[name].append((value - zero) / (one - zero))
    return fmean(map(fmean, scaled.values()))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("search")
    finish(SEARCH, cwd)
    return cwd


def test_the_best_on_fresh_seeds_wins(undisturbed: Path) -> None:
    folder = undisturbed / "found"
    trials = trials_of(folder)
    for trial in trials:
        returns = finals(folder / "trials" / f"{trial.number:03d}")
        assert returns.keys() == {(name, 100) for name in TASKS}
        assert trial.value == pytest.approx(score(returns))
    best = sorted(trials, key=lambda trial: -(trial.value or 0.0))[:2]
    again = {trial.number: finals(folder / "confirmation" / f"{trial.number:03d}") for trial in best}
    assert {path.name for path in (folder / "confirmation").iterdir()} == {f"{number:03d}" for number in again}
    assert all(found.keys() == {(name, seed) for name in TASKS for seed in (101, 102)} for found in again.values())
    winner = max(again, key=lambda number: score(again[number]))
    saved = yaml.safe_load((folder / "confirmation" / f"{winner:03d}" / "two" / "seed_101" / "config.yaml").read_text())
    common = yaml.safe_load((folder / "search.yaml").read_text())["overrides"]
    common = [text for text in common if text.partition("=")[0] not in trials[winner].params]
    preset = load_config([*common, "env=inverted_double_pendulum", "seed=101", "experiment=best"], str(folder / "conf"))
    assert preset.to_dict() == saved

    text = (folder / "conf" / "experiment" / "best.md").read_text()
    assert f"Trial {winner}: {score(again[winner]):.3f}".replace("-", "\N{MINUS SIGN}") in text
    for value in (*(trial.value or 0.0 for trial in trials), *map(score, again.values())):
        assert f"{value:.3f}".replace("-", "\N{MINUS SIGN}") in text
    assert "rlexp-search" in text
    assert "seeds 100." in text
    assert "seeds 101, 102." in text
    assert "seed=range(0,10)" in (undisturbed / "output.txt").read_text(), (
        "the seeds for final results are still unused"
    )


@pytest.mark.kill
def test_stopped_and_killed_two_workers_end_with_the_search_that_never_was(undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM while the trials run, kill -9 in the confirmation."""
    folder = tmp_path / "found"
    arguments = [*SEARCH, "search.workers=2"]
    for phase, number in (("trials", signal.SIGTERM), ("confirmation", signal.SIGKILL)):
        process = start(arguments, tmp_path)
        deadline = time.monotonic() + 100
        while not any(path.stat().st_size for path in folder.glob(f"{phase}/*/*/*/metrics.jsonl")):
            assert process.is_alive(), (tmp_path / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == (143 if number is signal.SIGTERM else -number), (tmp_path / "output.txt").read_text()
        arguments = ["resume=found", "search.workers=2"]
    finish(arguments, tmp_path)
    before, after = undisturbed / "found", folder
    assert [(t.number, t.params, t.value) for t in trials_of(after)] == [
        (t.number, t.params, t.value) for t in trials_of(before)
    ]
    preset = Path("conf", "experiment", "best.yaml")
    assert (after / preset).read_text() == (before / preset).read_text()
    texts = [(top / preset.with_suffix(".md")).read_text().split("\n\n") for top in (before, after)]
    assert texts[0][2:] == texts[1][2:], "all but the command"


def plan_of(tasks: dict[str, TaskConfig]) -> SearchPlan:
    settings = SearchConfig(
        trials=4, seeds=1, first_seed=0, confirm=3, confirm_seeds=2, workers=1, startup=1, prune=False, warmup=0.0,
        seed=0, tasks=tasks, space={},
    )  # fmt: skip
    return SearchPlan([], settings, None, ["dir=found"])


RETURNS = {1e-3: {"a": [10.0, 20.0], "b": [3.0, 5.0]}, 1e-4: {"a": [30.0, 50.0], "b": [3.0, 4.0]}}


class Pretended:
    """A trainer that gives `RETURNS` by learning rate, and fails with others."""

    full = True

    def __init__(self, config: ExperimentConfig, run: RunDir, start: None) -> None:
        self.config, self.run = config, run

    def fit(self) -> dict[str, Any]:
        if Pretended.full:
            (self.run.path / "summary.json").write_text(json.dumps({"status": "failed"}))
            raise OSError("no space left")
        task = "a" if self.config.env.name == "hopper" else "b"
        if self.config.optim.lr not in RETURNS:
            raise ValueError("diverged")
        ended = {
            "status": "completed",
            "final": {"eval/return": RETURNS[self.config.optim.lr][task][self.config.seed - 1]},
        }
        (self.run.path / "summary.json").write_text(json.dumps(ended))
        return ended


def test_a_trial_that_fails_on_a_fresh_seed_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlexp.search.confirmation.Trainer", Pretended)
    monkeypatch.setattr(Pretended, "full", True)
    study = optuna.create_study(direction="maximize")
    for value, lr in ((1.0, 1e-5), (5.0, 1.0), (3.0, 1e-4), (4.0, 1e-3)):
        study.enqueue_trial({"optim.lr": lr})
        trial = study.ask()
        trial.suggest_float("optim.lr", 1e-5, 1.0)
        study.tell(trial, value)
    plan = plan_of(
        {
            "a": TaskConfig(overrides=["env=hopper"], random=0.0, reference=10.0),
            "b": TaskConfig(overrides=["env=inverted_pendulum"], random=0.0, reference=1.0),
        }
    )
    folder = SearchDir(tmp_path)
    picked = chosen(study.trials, plan)
    assert [trial.number for trial in picked] == [1, 3, 2]
    with pytest.raises(OSError, match="no space"):
        confirm(folder, plan, picked, lambda: None)
    monkeypatch.setattr(Pretended, "full", False)
    confirm(folder, plan, picked, lambda: None)  # a full disk is no fault of the trial's

    first, second, failed = confirmed(folder, plan, picked)
    assert (first.trial.number, second.trial.number, failed.trial.number) == (2, 3, 1)
    assert (failed.score, failed.error) == (None, "ValueError: diverged")
    assert first.score is not None
    assert first.score.value == pytest.approx(np.mean([np.mean([3.0, 5.0]), np.mean([3.0, 4.0])]))
    assert first.score.low == pytest.approx(3.0)  # a seed drawn twice on both tasks: one resample in sixteen
    assert first.score.high == pytest.approx(4.5)
    assert "ValueError: diverged" in protocol(plan, study.trials, [first, second, failed], first.trial)

    for value, lr in ((9.0, 2e-3), (8.0, 3e-3)):  # of an extension, which ends below the earlier ones
        RETURNS[lr] = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
        study.enqueue_trial({"optim.lr": lr})
        trial = study.ask()
        trial.suggest_float("optim.lr", 1e-5, 1.0)
        study.tell(trial, value)
    confirm(folder, plan, chosen(study.trials, plan), lambda: None)
    before = confirmed_before(folder, plan, study.trials)
    assert [trial.number for trial in before] == [2, 3]
    found = confirmed(folder, plan, [*chosen(study.trials, plan), *before])
    assert [one.trial.number for one in found] == [2, 3, 4, 5, 1], "what was trained again stays in"
    text = protocol(plan, study.trials, found, found[0].trial)
    assert "the best 3 and 2 that were so before the search was extended on seeds" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search.tasks.a={overrides:['env=ant']}", SEARCH[-1]], "search.tasks.a.random"),
        (["search.tasks.a={overrides:['env=ant'],random:1}"], "search.tasks.a.reference"),
        (["search.tasks.a={overrides:['env=ant'],random:3,reference:2}"], "must be less than reference"),
        (["search.tasks.a={overrides:['env=annt']}"], "Did you mean ant?"),
        (["search.tasks.a={overrides:['seed=1']}"], "search.first_seed"),
        (["search.tasks.a={override:['env=ant']}"], "search.tasks.a.override"),
        (["search.tasks.a=ant"], "search.tasks.a=ant"),
        (["search.tasks.a/b={overrides:['env=ant']}"], "search.tasks.a/b"),
        (
            ["search.tasks.a={overrides:['env=pendulum']}", "search.space.minibatch_size.choices=[64,4096]"],
            "search.space.mini",
        ),
        (["search.workers=1000"], "the cores of this machine"),
        (["search.confirm=-1"], "search.confirm=-1"),
        (["search.confirm_seeds=0"], "search.confirm_seeds=0"),
    ],
)
def test_what_is_wrong_is_reported_before_anything_starts(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="problem") as raised:
        search(arguments)
    assert said in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_search_of_an_earlier_version_goes_on_as_it_was(tmp_path: Path) -> None:
    settings = {"trials": 5, "seeds": 3, "startup": 2, "prune": True, "warmup": 0.25, "seed": 0}
    values = {
        "overrides": ["env=hopper"],
        "config_dir": None,
        "search": settings | {"space": {"num_epochs": {"low": 1, "high": 3}}},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    plan = _plan_of(SearchDir(tmp_path), ["search.workers=2"], None)
    assert (list(plan.settings.screening_seeds), plan.settings.confirm, plan.settings.workers) == ([0, 1, 2], 0, 2)
    assert list(plan.settings.scored_on) == [""]
    # The command that resumes it next names neither again.
    assert _plan_of(SearchDir(tmp_path), ["search.trials=9"], None).settings.workers == 2
    assert _plan_of(SearchDir(tmp_path), [], None).settings.trials == 9


def test_a_folder_of_options_may_have_moved(tmp_path: Path) -> None:
    (old := tmp_path / "old").mkdir()
    (tmp_path / "mine.yaml").write_text("# @package _global_\nloss: {gamma: 0.9}\n")
    values = yaml.safe_load(option_text("search/ppo"))
    folder = SearchDir(tmp_path)
    plan = SearchPlan(["experiment=mine"], cast("SearchConfig", None), str(old))
    folder.write_plan(plan, values, [])
    with pytest.raises(ConfigError, match="give it again"):
        _plan_of(folder, [], None)
    (tmp_path / "new" / "experiment").mkdir(parents=True)
    (tmp_path / "mine.yaml").rename(tmp_path / "new" / "experiment" / "mine.yaml")
    assert _plan_of(folder, [], str(tmp_path / "new")).config_dir == str(tmp_path / "new")
    assert folder.read_plan()["config_dir"] == str(tmp_path / "new")
    folder.write_plan(SearchPlan([], cast("SearchConfig", None), None), values, [])
    with pytest.raises(ConfigError, match="none that the search was started with"):
        _plan_of(folder, [], str(tmp_path / "new"))
