"""The screening of a search: a resumable Optuna study whose trials are trainings."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from rlexp.callbacks import Callback, Training
from rlexp.config import ConfigError, Problem
from rlexp.config.redaction import redact
from rlexp.errors import RlexpError
from rlexp.experiment import check_config
from rlexp.files import alone
from rlexp.report.tables import number as shown
from rlexp.runs.errors import CheckpointError
from rlexp.runs.resume import open_run
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.runs.stops import Stopped
from rlexp.search.config import SearchConfig
from rlexp.search.folder import SearchDir, SearchPlan, best_of, final_return, overrides_of, state_of
from rlexp.sweeps.folder import COMPLETED
from rlexp.training.trainer import Trainer

if TYPE_CHECKING:
    from rlexp.agent.evaluation import Evaluation

log = logging.getLogger(__name__)

_FAILED_ALIKE = 3
POLL = 1.0  # seconds between looks at what other processes do


def screen(folder: SearchDir, plan: SearchPlan, go_on: Callable[[], None]) -> None:
    """Run trials until as many as the plan asks for have ended; several processes may share a folder.

    The settings and scores of every trial are in the study's journal as soon as they are known, and its runs are in
    folders of their own. A screening that was killed at any time resumes the trial that it was in, and the runs of that
    trial from their checkpoints. With one process, an interrupted screening tries the same settings as one that was not
    interrupted.

    Args:
        folder: the folder of the search.
        plan: what to search.
        go_on: called before each trial, and while others run theirs; raises what is to end this.

    Raises:
        ConfigError: a part of the experiment cannot be built, whatever the values, or `open_study` refuses the study.
        CheckpointError: a run of an interrupted trial has no intact checkpoint.
        Stopped: a signal was received; the current run is saved.
    """
    study = open_study(folder, plan.settings)
    while True:
        # A killed process may have reported a trial to the study without writing it here.
        folder.write_results(study, plan)
        while (claimed := _claim(study, folder, plan.settings)) is None:
            if all(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
                return
            time.sleep(POLL)
            go_on()
        trial, held = claimed
        try:
            go_on()
            _run(study, trial, folder, plan)
        finally:
            held.unlock()
        _log_trial(study, trial.number, plan.settings.trials)


def open_study(folder: SearchDir, settings: SearchConfig) -> optuna.Study:
    """The study of a folder, new or existing.

    Raises:
        ConfigError: it holds trials with other settings or values than the search's, which may be anyone's.
    """
    if linked := next((path for path in (folder.journal, folder.database) if path.is_symlink()), None):
        raise ConfigError([Problem("resume", "is a link, and what is written would go elsewhere.", str(linked))])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Steps are frames, counted over all runs of a trial; `Pruning` applies the warm-up, within each run.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=settings.startup) if settings.prune else None
    try:
        study = optuna.create_study(
            storage=_storage(folder),
            study_name="search",
            direction="maximize",
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        trials = study.get_trials(deepcopy=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what a damaged or hostile journal leads to
        raise ConfigError([Problem("resume", f"is damaged: {error!r:.200}", str(folder.journal))]) from error
    for trial in trials:
        for key, value in trial.params.items():
            if key not in settings.space or not settings.space[key].allows(value):
                message = f"trial {trial.number} of its study has a value that is none of the search's: it is damaged."
                raise ConfigError([Problem("resume", message, f"{key}={value}"[:200])])
    return study


def _storage(folder: SearchDir) -> str | JournalStorage:
    if folder.database.exists():
        return f"sqlite:///{folder.database}"
    # Optuna advises against SQLite where several processes write.
    return JournalStorage(JournalFileBackend(str(folder.journal), JournalLock(folder.journal)))


class EndedEarlyError(RlexpError):
    """A run of a trial has ended before its budget, so that it has no score."""


class JournalLock:
    """Optuna's protocol for the lock of a journal, with the kernel's locks: no killed process can hold one.

    Args:
        journal: the file.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held = ExitStack()

    def acquire(self) -> bool:
        """Wait for other writers, and drop the line that a killed one has left unfinished."""
        self._held.enter_context(alone(self._journal.with_name(".study.lock")))
        content = self._journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._journal, whole)
        return True

    def release(self) -> None:
        """Let others write."""
        self._held.close()


class Pruning(Callback):
    """Reports evaluations to a trial, and stops the run when the study's pruner decides to.

    The reported value is the mean of the evaluation and the final evaluations of the trial's earlier runs, each on its
    task's scale: the score that the trial would have if this run were its last and ended here.

    Args:
        trial: the trial that the run belongs to.
        reported: steps that were reported before the trial was interrupted.
        scores: of the trial's earlier runs.
        score: of a mean return.
        before: frames that the earlier runs were trained for.
        warmup: frames of a run before which nothing is pruned.
    """

    def __init__(
        self,
        trial: Trial,
        reported: set[int],
        scores: Sequence[float],
        score: Callable[[float], float],
        before: int,
        warmup: float,
    ) -> None:
        self._trial = trial
        self._reported = reported
        self._scores = scores
        self._score = score
        self._before = before
        self._warmup = warmup
        self.pruned = False

    def after_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Report the evaluation, and stop the run if it is to be pruned."""
        if trainer.frames < self._warmup:
            return
        step = self._before + trainer.frames
        if step not in self._reported:  # a run that resumes from a checkpoint repeats evaluations
            self._trial.report(fmean([*self._scores, self._score(evaluation.mean_return)]), step)
        if not trainer.finished and self._trial.should_prune():
            self.pruned = True
            trainer.stop()


def _claim(study: optuna.Study, folder: SearchDir, settings: SearchConfig) -> tuple[Trial, RunDir] | None:
    """A trial to run, locked: one that a dead process left, else a new one; None when there are enough."""
    with folder.alone():
        trials = study.get_trials(deepcopy=False)
        for left in trials:
            held = folder.trial(left.number)
            if left.state is not TrialState.RUNNING or not _locked(held):
                continue
            if study.trials[left.number].state is TrialState.RUNNING:
                log.info("Trial %d is resumed.", left.number)
                study.sampler = _sampler(settings, left.number)
                return Trial(study, left._trial_id), held
            held.unlock()  # it has ended in the meantime
        if len(trials) >= settings.trials:
            return None
        study.sampler = _sampler(settings, len(trials))
        trial = study.ask()
        held = folder.trial(trial.number)
        held.lock()
        return trial, held


def _sampler(settings: SearchConfig, number: int) -> optuna.samplers.BaseSampler:
    """A sampler with a seed of its own for each trial, so that the state of its generator need not be saved."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=settings.startup)


def _run(study: optuna.Study, trial: Trial, folder: SearchDir, plan: SearchPlan) -> None:
    """Train a trial's seeds one after another, each on every task, and report the result to the study.

    Raises:
        As `screen`; nothing is then reported to the study, and the trial can be resumed.
    """
    params = {key: _suggest(trial, key, plan.settings) for key in plan.settings.space}
    reported = set(study.trials[trial.number].intermediate_values)
    log.info("Trial %d: %s", trial.number, " ".join(overrides_of(params)))
    runs = list(product(plan.settings.screening_seeds, plan.settings.scored_on.items()))
    scores: list[float] = []
    frames = 0
    for seed, (name, task) in runs:
        overrides = plan.of_run(params, task, seed)
        composed = plan.load(overrides)
        try:
            config = check_config(composed, plan.trust)
        except ConfigError as error:  # each value is allowed, and these together are not
            log.warning("Trial %d cannot be run: %s", trial.number, error)
            _fail(study, trial, error)
            return
        # Not once its final evaluation was reported: a process that was killed since would not have asked again.
        if max(reported, default=0) < frames + config.total_frames and trial.should_prune():
            break
        begin = open_run(composed, overrides, folder.run(trial.number, name, seed), "auto", plan.trust)
        total = begin.config.total_frames
        if begin.complete:
            scores.append(task.score(final_return(begin.run)))
            frames += total
            continue
        pruning = Pruning(trial, reported, scores, task.score, frames, plan.settings.warmup * total)
        try:
            trainer = Trainer(begin.config, begin.run, begin.checkpoint)
            trainer.callbacks["rlexp-search"] = pruning
            summary = trainer.fit()
            if not pruning.pruned and summary["status"] != COMPLETED:
                raise EndedEarlyError(f"a callback stopped the run with seed {seed} before total_frames")
        except (OSError, CheckpointError, RunBusyError, Stopped):
            raise
        except Exception as error:
            begin.run.unlock()  # a trainer that cannot be built leaves it locked
            _fail(study, trial, error)
            if isinstance(error, ConfigError) and _none_can_be_built(study):
                raise
            return
        if pruning.pruned:
            break
        scores.append(task.score(summary["final"]["eval/return"]))
        frames += total
    if len(scores) == len(runs):
        study.tell(trial, fmean(scores))
    else:
        study.tell(trial, state=TrialState.PRUNED)


def _fail(study: optuna.Study, trial: Trial, error: Exception) -> None:
    trial.set_user_attr("error", redact(f"{type(error).__name__}: {error}"))
    study.tell(trial, state=TrialState.FAIL)


def _none_can_be_built(study: optuna.Study) -> bool:
    """Whether it is the experiment that is at fault, and not the values of single trials."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return len(ended) >= _FAILED_ALIKE and all(trial.state is TrialState.FAIL for trial in ended)


def _suggest(trial: Trial, key: str, settings: SearchConfig) -> Any:
    candidates = settings.space[key]
    if candidates.choices is not None:
        return trial.suggest_categorical(key, candidates.stored)
    assert candidates.low is not None
    assert candidates.high is not None
    if isinstance(candidates.low, int) and isinstance(candidates.high, int):
        return trial.suggest_int(key, candidates.low, candidates.high, log=candidates.log)
    return trial.suggest_float(key, candidates.low, candidates.high, log=candidates.log)


def _log_trial(study: optuna.Study, number: int, trials: int) -> None:
    ended = study.trials[number]
    score = f" with {shown(ended.value)}" if ended.state is TrialState.COMPLETE else ""
    best = best_of(study)
    so_far = "" if best is None else f"; the highest score so far is trial {best.number}'s, {shown(best.value)}"
    log.info("Trial %d of %d: %s%s%s.", number, trials, state_of(ended), score, so_far)


def _locked(held: RunDir) -> bool:
    try:
        held.lock()
    except RunBusyError:
        return False
    return True
