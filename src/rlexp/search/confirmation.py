"""The confirmation of a search: its best trials again, on seeds that none of them was chosen by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from rlexp.config.redaction import redact
from rlexp.experiment import check_config
from rlexp.files import write_text
from rlexp.report.runs import Floats
from rlexp.report.statistics import Estimate, estimate, mean_of_strata
from rlexp.report.tables import number
from rlexp.runs.errors import CheckpointError
from rlexp.runs.links import refuse_links
from rlexp.runs.resume import Start, open_run
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.runs.stops import Stopped
from rlexp.search.folder import SearchDir, SearchPlan, final_return, state_of
from rlexp.search.study import POLL, EndedEarlyError
from rlexp.sweeps.folder import COMPLETED, read_summary
from rlexp.training.trainer import Trainer

log = logging.getLogger(__name__)

# In the folder of a run whose training failed. A summary says "failed" after a full disk too, and its run is resumed.
_ERROR = "error.txt"


@dataclass(frozen=True)
class Confirmed:
    """A trial that was trained again.

    Attributes:
        trial: the trial.
        returns: mean returns of the final evaluations by task, ``[seeds]``.
        score: mean over tasks and seeds, each on its task's scale, with its interval; None where a run failed.
        error: of a run that failed.
    """

    trial: FrozenTrial
    returns: Mapping[str, Floats]
    score: Estimate | None
    error: str | None = None


def chosen(trials: Sequence[FrozenTrial], plan: SearchPlan) -> list[FrozenTrial]:
    """The trials that are trained again: those with the highest scores."""
    completed = [trial for trial in trials if state_of(trial) == "completed"]
    return sorted(completed, key=lambda trial: (-(trial.value or 0.0), trial.number))[: plan.settings.confirm]


def confirmed_before(folder: SearchDir, plan: SearchPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that are no longer `chosen`, and were trained again before the search was extended."""
    now = {trial.number for trial in chosen(trials, plan)}
    completed = [trial for trial in trials if state_of(trial) == "completed" and trial.number not in now]
    return [trial for trial in completed if all(_ended(path) for path, _ in _runs(folder, plan, [trial]))]


def confirm(folder: SearchDir, plan: SearchPlan, trials: Sequence[FrozenTrial], go_on: Callable[[], None]) -> None:
    """Train trials on the fresh seeds, until every run has ended; several processes share them as they do the trials.

    Args:
        folder: the folder of the search.
        plan: what is searched.
        trials: the trials that are `chosen`.
        go_on: called before each run, and while others run theirs; raises what is to end this.

    Raises:
        ConfigError, CheckpointError, Stopped: as `rlexp.search.study.screen`.
    """
    while left := [run for run in _runs(folder, plan, trials) if not _ended(run[0])]:
        busy = 0
        for path, overrides in left:
            if not _ended(path):
                go_on()
                busy += not _train(folder, plan, path, overrides)
        if busy == len(left):
            time.sleep(POLL)


def confirmed(folder: SearchDir, plan: SearchPlan, trials: Sequence[FrozenTrial]) -> list[Confirmed]:
    """What the runs on fresh seeds gave, best first; trials with a run that failed are last."""
    found = [_confirmed(folder, plan, trial) for trial in trials]
    return sorted(found, key=lambda one: -np.inf if one.score is None else one.score.value, reverse=True)


def _runs(folder: SearchDir, plan: SearchPlan, trials: Sequence[FrozenTrial]) -> Iterator[tuple[Path, list[str]]]:
    for trial in trials:
        for seed in plan.settings.fresh_seeds:
            for name, task in plan.settings.scored_on.items():
                yield folder.confirmation(trial.number, name, seed), plan.of_run(trial.params, task, seed)


def _ended(path: Path) -> bool:
    return (path / _ERROR).exists() or read_summary(RunDir(path)).get("status") == COMPLETED


def _train(folder: SearchDir, plan: SearchPlan, path: Path, overrides: Sequence[str]) -> bool:
    """Train one run to its end, or resume it; False where another process is at it."""
    held = RunDir(path)
    refuse_links(held)
    try:
        held.lock()  # before asking what is there: another process may just have ended the run
        composed = plan.load(overrides)
        if held.started:
            held.unlock()
            start = open_run(composed, overrides, path, "auto", plan.trust)
        else:
            start = Start(check_config(composed, plan.trust), held, None)
    except RunBusyError:
        return False
    try:
        if not start.complete:
            summary = Trainer(start.config, start.run, start.checkpoint).fit()
            if summary["status"] != COMPLETED:
                raise EndedEarlyError("a callback stopped the run before total_frames")
            log.info("%s: %s", path.relative_to(folder.path), number(summary["final"]["eval/return"]))
    except (OSError, CheckpointError, Stopped):
        raise
    except Exception as error:
        path.mkdir(parents=True, exist_ok=True)  # a trainer that cannot be built removes it
        write_text(path / _ERROR, redact(f"{type(error).__name__}: {error}"))
    finally:
        start.run.unlock()
    return True


def _confirmed(folder: SearchDir, plan: SearchPlan, trial: FrozenTrial) -> Confirmed:
    returns: dict[str, Floats] = {}
    for name in plan.settings.scored_on:
        paths = [folder.confirmation(trial.number, name, seed) for seed in plan.settings.fresh_seeds]
        if failed := [path / _ERROR for path in paths if (path / _ERROR).exists()]:
            return Confirmed(trial, {}, None, failed[0].read_text(encoding="utf-8"))
        returns[name] = np.array([final_return(RunDir(path)) for path in paths])
    scores = [
        np.array([task.score(value) for value in returns[name]]) for name, task in plan.settings.scored_on.items()
    ]
    return Confirmed(trial, returns, estimate(scores, mean_of_strata))
