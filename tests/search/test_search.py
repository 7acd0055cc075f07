"""`rlexp-search`: a study that no kill changes, scored by the mean over seeds of final evaluations."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import yaml
from commands import TINY, launch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from rlexp import load_config
from rlexp.cli.search import _plan_of, search
from rlexp.config import ConfigError, option_text
from rlexp.report import load_runs
from rlexp.search.config import CandidatesConfig, SearchConfig, TaskConfig
from rlexp.search.folder import SearchDir, SearchPlan, overrides_of
from rlexp.search.study import JournalLock, open_study

SMALL = [
    *TINY, "total_frames=256", "collector.frames_per_batch=128", "minibatch_size=32", "evaluation.episodes=1",
    "evaluation.interval=128", "checkpoint.interval=128", "logger=none",
]  # fmt: skip
FOUR = {
    "optim": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    "loss": {"clip_epsilon": {"low": 0.1, "high": 0.4}},
    "num_epochs": {"low": 1, "high": 3},
    "policy": {"num_cells": {"choices": [[8], [16, 16]]}},
}


def option(cwd: Path, space: dict[str, Any]) -> list[str]:
    """A space of the user's own."""
    values = {"trials": 5, "seeds": 2, "startup": 2, "prune": True, "warmup": 0.25, "seed": 0, "space": space}
    values |= {"first_seed": 0, "confirm": 0, "confirm_seeds": 1, "workers": 1, "tasks": {}}
    (cwd / "conf" / "search").mkdir(parents=True)
    (cwd / "conf" / "search" / "own.yaml").write_text(yaml.safe_dump(values))
    return ["--config-dir", "conf", "search=own", *SMALL, "dir=found"]


SETTINGS = cast("SearchConfig", SimpleNamespace(prune=False))  # all that a study needs
TEXT = st.characters(codec="utf-8", exclude_categories=["C"])
RESUME = ["--config-dir", "conf", "resume=found"]


def study_of(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.load_study(study_name="search", storage=storage)


def trials_of(folder: Path) -> list[tuple[Any, ...]]:
    """Everything that a study knows of its trials but when they were."""
    return [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in study_of(folder).trials]


def rows_written(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.glob("trials/*/*/metrics.jsonl"))


def finish(arguments: list[str], cwd: Path) -> str:
    process = launch(arguments, cwd, "search")
    process.join(120)
    assert process.exitcode == 0, (cwd / "output.txt").read_text()
    return (cwd / "output.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("search")
    finish(option(cwd, FOUR), cwd)
    return cwd


def test_a_score_is_the_mean_of_final_evaluations_over_seeds(undisturbed: Path) -> None:
    folder = undisturbed / "found"
    study = study_of(folder)
    assert len(study.trials) == 5
    completed = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(completed) >= 2
    for trial in completed:
        runs = load_runs([folder / "trials" / f"{trial.number:03d}"])
        assert [run.seed for run in runs] == [0, 1]
        assert trial.value == fmean(run.final for run in runs)
        # What the pruner saw: after the first seed, means with its final evaluation.
        first, second = (list(map(float, run.returns)) for run in runs)
        expected = [*first, *(fmean([first[-1], value]) for value in second)]
        assert list(trial.intermediate_values.values()) == expected
        assert list(trial.intermediate_values) == [128, 256, 384, 512]
        for run in runs:
            assert run.settings["optim.lr"] == trial.params["optim.lr"]
            assert json.dumps(run.settings["policy.num_cells"]) == trial.params["policy.num_cells"]
    assert "pruned" in {row["state"] for row in csv.DictReader((folder / "trials.csv").open())}
    assert {path.stem for path in (folder / "plots").iterdir()} >= {"history", "parallel_coordinates"}


def test_the_best_settings_are_a_preset(undisturbed: Path) -> None:
    folder = undisturbed / "found"
    best = study_of(folder).best_trial
    common = yaml.safe_load((folder / "search.yaml").read_text())["overrides"]
    common = [text for text in common if text.partition("=")[0] not in best.params]
    preset = load_config([*common, "experiment=best"], str(folder / "conf"))
    saved = yaml.safe_load((folder / "trials" / f"{best.number:03d}" / "seed_0" / "config.yaml").read_text())
    assert preset.to_dict() == saved
    assert f"optim.lr={best.params['optim.lr']}" in (undisturbed / "output.txt").read_text()


@pytest.mark.kill
def test_killed_and_resumed_it_is_the_search_that_never_was(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 in three trials or more; it takes a process and its imports each time."""
    folder = tmp_path / "found"
    arguments = option(tmp_path, FOUR)
    for rows in (1, 3, 7):  # at the last of a trial's rows it may be between two trials
        process = launch(arguments, tmp_path, "search")
        deadline = time.monotonic() + 100
        while rows_written(folder) < rows:
            assert process.is_alive(), (tmp_path / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.join()
        arguments = RESUME
    assert sum(trial.state is TrialState.RUNNING for trial in study_of(folder).trials) == 1
    assert "is resumed" in finish(arguments, tmp_path)
    assert trials_of(folder) == trials_of(undisturbed / "found")

    (folder / "trials.csv").write_text("as if killed before it was written\n")
    finish(arguments, tmp_path)
    assert (folder / "trials.csv").read_text() == (undisturbed / "found" / "trials.csv").read_text()


def test_more_trials_extend_it_and_two_processes_share_them(tmp_path: Path) -> None:
    finish([*option(tmp_path, FOUR), "search.trials=1", "search.prune=false"], tmp_path)
    (first,) = trials_of(tmp_path / "found")
    both = [launch([*RESUME, "search.trials=4"], tmp_path, "search") for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    trials = trials_of(tmp_path / "found")
    assert trials[0] == first
    assert [(number, state) for number, state, *_ in trials] == [(number, "COMPLETE") for number in range(4)]
    assert len(load_runs([tmp_path / "found"])) == 8


def test_results_are_never_older_than_what_another_process_wrote_meanwhile(tmp_path: Path) -> None:
    """The other has a trial more, and writes while this one is between reading the study and writing."""
    folder = SearchDir(tmp_path)
    scores = optuna.create_study()

    def ends(score: float) -> list[FrozenTrial]:
        scores.tell(scores.ask(), score)
        trials: list[FrozenTrial] = scores.trials
        return trials

    one, two = ends(1.0), ends(2.0)
    plan = SearchPlan([], cast("SearchConfig", SimpleNamespace(confirm=0)), None)
    study = SimpleNamespace(trials=two, best_trial=two[1])
    other = threading.Thread(target=folder.write_results, args=(study, plan))

    class Slow:
        best_trial = one[0]

        @property
        def trials(self) -> list[FrozenTrial]:
            if other.ident is None:
                other.start()
                other.join(0.2)
            return one

    folder.write_results(cast("optuna.Study", Slow()), plan)
    other.join()
    assert [row["score"] for row in csv.DictReader(folder.trials.open())] == ["1.0", "2.0"]
    assert "Trial 1 of a search" in folder.best.read_text()


def test_a_line_that_a_killed_writer_left_unfinished_is_dropped(tmp_path: Path) -> None:
    study = open_study(SearchDir(tmp_path), SETTINGS)
    study.tell(study.ask(), 1.0)
    journal = tmp_path / "study.log"
    whole = journal.read_bytes()
    for cut in (whole + whole[:20], whole[:-1], b"op_code"):
        journal.write_bytes(cut)
        again = open_study(SearchDir(tmp_path), SETTINGS)
        again.ask()
        kept = cut[: cut.rfind(b"\n") + 1]
        assert journal.read_bytes().startswith(kept)
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())
        assert len(study_of(tmp_path).trials) == kept.count(b'"op_code":4') + 1


def test_one_at_a_time_writes_the_journal(tmp_path: Path) -> None:
    """Each storage has a lock of its own, in two processes or in two threads."""
    open_study(SearchDir(tmp_path), SETTINGS)
    first, second = (JournalLock(tmp_path / "study.log") for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        first.acquire()
        waits = pool.submit(second.acquire)
        with pytest.raises(TimeoutError):
            waits.result(0.2)
        first.release()
        assert waits.result(60)
        second.release()


def test_a_search_of_an_earlier_version_keeps_its_database(tmp_path: Path) -> None:
    earlier = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="search", direction="maximize"
    )
    earlier.tell(earlier.ask(), 5.0)
    study = open_study(SearchDir(tmp_path), SETTINGS)
    assert [trial.value for trial in study.trials] == [5.0]
    assert not (tmp_path / "study.log").exists()


def test_a_trial_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    space = {"optim": {"lr": {"choices": [1e-3, 1e30]}}}
    finish([*option(tmp_path, space), "search.seeds=1"], tmp_path)
    with (tmp_path / "found" / "trials.csv").open() as file:
        rows = {row["optim.lr"]: row for row in csv.DictReader(file)}
    assert rows["0.001"]["state"] == "completed"
    assert (rows["1e+30"]["state"], rows["1e+30"]["score"]) == ("failed", "")
    assert "TrainingError" in rows["1e+30"]["error"]


def test_a_value_that_no_constructor_takes_fails_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial is ended, so that a resume does not meet it again; and no secret of its error is written."""
    monkeypatch.setenv("MY_API_KEY", "s3cr3tvalue-1234567")
    monkeypatch.chdir(tmp_path)
    space = {"env.kwargs.s3cr3tvalue-1234567": {"choices": [1, 2]}}
    arguments = [*option(tmp_path, space), "env=pendulum", "search.seeds=1"]
    with pytest.raises(ConfigError, match="unexpected keyword argument"):
        search(arguments)
    assert [trial.state for trial in study_of(tmp_path / "found").trials] == [TrialState.FAIL] * 3
    errors = [row["error"] for row in csv.DictReader((tmp_path / "found" / "trials.csv").open())]
    assert all("ConfigError" in error and "s3cr3tvalue" not in error for error in errors)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(TEXT),
        lambda below: (
            st.lists(below, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), below)
        ),
        max_leaves=5,
    )
)
def test_any_value_is_the_same_on_the_command_line(value: Any) -> None:
    stored = CandidatesConfig(choices=[value]).stored[0]
    assume(not isinstance(value, str) or not value.startswith(("[", "{")))  # those are lists and mappings in a study
    (override,) = overrides_of({"key": stored})
    assert OverridesParser.create().parse_override(override).value() == value


def test_a_winner_never_takes_an_earlier_ones_place(tmp_path: Path) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "best.yaml").write_text("# @package _global_\nloss: {gamma: 0.9}\n")
    scores = optuna.create_study(direction="maximize")
    trial = scores.ask()
    trial.suggest_categorical("num_epochs", [3])
    scores.tell(trial, 1.0)
    settings = SimpleNamespace(confirm=0, first_seed=100, scored_on={"": TaskConfig(overrides=[])})
    plan = SearchPlan(["experiment=best"], cast("SearchConfig", settings), str(own.parent))
    folder = SearchDir(tmp_path / "found")
    folder.path.mkdir()
    folder.write_results(scores, plan)
    for number in (2, 3):
        _, (copy,) = folder.commands(plan, scores.best_trial)
        assert copy == f"copy {folder.best} to {own / f'best_{number}.yaml'}"
        shutil.copy(folder.best, own / f"best_{number}.yaml")
        preset = load_config([f"experiment=best_{number}"], str(own.parent))
        assert (preset.loss.gamma, preset.num_epochs) == (0.9, 3)


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    study = open_study(SearchDir(tmp_path), SETTINGS)
    study.tell(study.ask(), 1.0)
    for line in (b"\xff\xfe\n", b"not a number\n", b'{"op_code":4}\n'):
        whole = (tmp_path / "study.log").read_bytes()
        (tmp_path / "study.log").write_bytes(whole + line)
        with pytest.raises(ConfigError, match=r"study\.log(.|\n)*is damaged"):
            open_study(SearchDir(tmp_path), SETTINGS)
        (tmp_path / "study.log").write_bytes(whole)


def test_a_preset_stands_on_the_one_that_was_searched(tmp_path: Path) -> None:
    scores = optuna.create_study(direction="maximize")
    trial = scores.ask()
    trial.suggest_categorical("policy.num_cells", ["[8, 8]"])
    scores.tell(trial, 1.0)
    settings = SimpleNamespace(confirm=0, first_seed=100, scored_on={"": TaskConfig(overrides=[])})
    plan = SearchPlan(["experiment=hopper", "optim.lr=1e-3"], cast("SearchConfig", settings), None)
    folder = SearchDir(tmp_path)
    folder.write_results(scores, plan)
    _, (command,) = folder.commands(plan, scores.best_trial)
    name, flag, conf, *overrides = shlex.split(command)
    assert (name, flag) == ("rlexp-train", "--config-dir")
    preset = load_config(overrides, conf).to_dict()
    assert preset == load_config(["experiment=hopper", "optim.lr=1e-3", "policy.num_cells=[8,8]"]).to_dict()


def test_no_override_wins_over_what_was_found(tmp_path: Path) -> None:
    """Neither one that a task or the command line has given, nor one that was added by a +."""
    scores = optuna.create_study(direction="maximize")
    trial = scores.ask()
    trial.suggest_categorical("loss.gamma", [0.9])
    scores.tell(trial, 1.0)
    tasks = {"": TaskConfig(overrides=["env=hopper", "loss.gamma=0.99"])}
    settings = SimpleNamespace(confirm=0, first_seed=100, scored_on=tasks)
    for override in ("loss.gamma=0.95", "+loss.gamma=0.95", "++loss.gamma=0.95"):
        plan = SearchPlan([override], cast("SearchConfig", settings), None)
        folder = SearchDir(tmp_path)
        folder.write_results(scores, plan)
        (fresh,), (preset,) = folder.commands(plan, scores.best_trial)
        _, _, conf, *overrides = shlex.split(preset)
        assert load_config(overrides, conf).loss.gamma == 0.9
        assert fresh.count("loss.gamma=") == 1
        assert "loss.gamma=0.9 " in fresh


def test_a_search_over_what_is_built_ends_with_its_protocol(tmp_path: Path) -> None:
    schedule = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.99}
    finish([*option(tmp_path, {"optim": {"schedule": {"choices": ["linear", schedule]}}}), "search.seeds=1"], tmp_path)
    assert '"gamma": 0.99' in (tmp_path / "found" / "conf" / "experiment" / "best.md").read_text()


@pytest.mark.parametrize("killed", ["in the run's end", "in the trial's"])
def test_a_trial_whose_last_evaluation_was_reported_is_not_pruned_by_a_resume(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed before it tells the study of the end had asked the pruner for the last time."""
    monkeypatch.chdir(tmp_path)
    arguments = [*option(tmp_path, FOUR), "search.seeds=1", "search.trials=1", "evaluation.interval=4096"]
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: bool(trial.study.trials[0].intermediate_values))
    tell = optuna.Study.tell
    monkeypatch.setattr(optuna.Study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search(arguments)
    monkeypatch.setattr(optuna.Study, "tell", tell)
    if killed == "in the run's end":
        (tmp_path / "found" / "trials" / "000" / "seed_0" / "summary.json").write_text('{"status": "running"}')
    search(RESUME)
    assert [trial.state for trial in study_of(tmp_path / "found").trials] == [TrialState.COMPLETE]


def test_a_search_whose_preset_was_edited_is_not_resumed(tmp_path: Path) -> None:
    mine = tmp_path / "options" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\nloss: {gamma: 0.9}\n")
    folder = SearchDir(tmp_path)
    values = yaml.safe_load(option_text("search/ppo"))
    plan = SearchPlan(["experiment=mine"], cast("SearchConfig", None), str(mine.parents[1]))
    config = load_config(["experiment=mine"], str(mine.parents[1])).to_dict()
    folder.write_plan(plan, values, [config | {"threads": 3}])
    assert _plan_of(folder, [], str(mine.parents[1])).settings.trials == values["trials"]
    mine.write_text("# @package _global_\nloss: {gamma: 0.8}\n")
    with pytest.raises(ConfigError, match=r"loss\.gamma=0\.8\n *has changed since the search was started: it was 0\.9"):
        _plan_of(folder, [], str(mine.parents[1]))


def test_a_study_with_other_settings_than_the_searchs_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"trials": 1, "seeds": 1, "startup": 1, "prune": False, "warmup": 0.1, "seed": 0, "confirm": 1}
    values = {"overrides": ["env=pendulum"], "config_dir": None, "search": settings | {"space": FOUR}}
    Path("found").mkdir()
    Path("found/search.yaml").write_text(yaml.safe_dump(values))
    marker = tmp_path / "executed"
    for key, value in (("callbacks.evil", f"{{_target_: os.mkdir, path: {marker}}}"), ("optim.lr", "1,2"), ("seed", 1)):
        Path("found/study.log").unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend("found/study.log"))
        study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
        trial = study.ask()
        trial.suggest_categorical(key, [value])
        study.tell(trial, 1e6)
        with pytest.raises(ConfigError, match="none of the search's"):
            search(["resume=found"])
        assert not marker.exists()
        assert not Path("found/conf").exists()
    Path("found/study.log").rename("elsewhere")
    Path("found/study.log").symlink_to(tmp_path / "elsewhere")
    before = Path("elsewhere").read_bytes()
    with pytest.raises(ConfigError, match="is a link"):
        search(["resume=found"])
    assert Path("elsewhere").read_bytes() == before


def test_settings_that_do_not_go_together_fail_their_trial_alone(tmp_path: Path) -> None:
    """Each is allowed with the others' defaults, and a minibatch of 128 is larger than a batch of 64."""
    space = {"minibatch_size": {"choices": [32, 128]}, "collector.frames_per_batch": {"choices": [64, 128]}}
    finish([*option(tmp_path, space), "search.seeds=1", "search.trials=8", "search.startup=8"], tmp_path)
    with (tmp_path / "found" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    states = {(row["minibatch_size"], row["collector.frames_per_batch"]): row["state"] for row in rows}
    assert states == {("32", "64"): "completed", ("32", "128"): "completed", ("128", "128"): "completed",
                      ("128", "64"): "failed"}  # fmt: skip
    assert all("larger than a batch" in row["error"] for row in rows if row["state"] == "failed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search=ppp"], "Did you mean ppo?"),
        (["loss.gama=0.9"], "Did you mean loss.gamma?"),
        (["search.trails=3"], "Did you mean search.trials?"),
        (["search.space.optim.lrr.choices=[1,2]"], "search.space.optim.lrr"),
        (["search.space.optim.lr.high=1e-5"], "must be less than high"),
        (["search.space.optim.lr.low=0"], "logarithmic"),
        (["+search.space.total_frames={low: 1e5, high: 1e6, log: false, choices: null}"], "search.space.total_frames="),
        (["search.space.loss.gamma.choices=[0.9,1.5]"], "search.space.loss.gamma=1.5"),
        (["search.space.loss.lmbda.high=2"], "search.space.loss.lmbda=2"),
        (["search.space.minibatch_size.choices=[64,4096]"], "is larger than a batch"),
        (["search.space.minibatch_size.choices=[64]"], "two different values"),
        (["search.space.optim.lr.low=high"], "search.space.optim.lr.low=high"),
        (["seed=3"], "search.seeds=N"),
        (["resume=nowhere"], "no search in this folder"),
        (["resume=nowhere", "dir=elsewhere"], "has no meaning with resume"),
        (["--config-name", "mine", "env=pendulum"], "--config-name"),
        (["--cfg", "job"], "--cfg"),
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


def test_a_search_goes_on_as_it_was_begun(undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match="Start a new search"):
        search([f"resume={undisturbed / 'found'}", "search.seeds=3"])
    with pytest.raises(ConfigError, match="has a search already: resume="):
        search([*SMALL, f"dir={undisturbed / 'found'}"])


def test_a_wrong_search_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from rlexp.cli.search import search\n"
        "from rlexp.config import ConfigError\n"
        "try: search(['search.trials=0'])\n"
        "except ConfigError: assert not {'torch', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "else: sys.exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_shipped_search_cuts_no_trial_unless_asked() -> None:
    """Its trials anneal the learning rate: what is low half way may end high."""
    shipped = yaml.safe_load(option_text("search/ppo"))
    assert shipped["prune"] is False
    assert load_config([]).optim.schedule == "linear"
