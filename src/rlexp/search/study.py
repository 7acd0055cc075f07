"""A resumable Optuna study whose trials are trainings."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from rlexp.callbacks import Callback, Training
from rlexp.config import ConfigError
from rlexp.runs.resume import open_run
from rlexp.runs.rundir import RunBusyError, RunDir
from rlexp.runs.stops import Stopped
from rlexp.search.config import SearchConfig
from rlexp.search.figures import draw
from rlexp.search.folder import SearchDir, SearchPlan, best_of, overrides_of, state_of
from rlexp.training.trainer import Trainer

if TYPE_CHECKING:
    from rlexp.agent.evaluation import Evaluation

log = logging.getLogger(__name__)


def search(folder: SearchDir, plan: SearchPlan) -> optuna.Study:
    """Run trials until there are as many as the plan asks for; several processes may share a folder.

    The settings and scores of every trial are in the study's database as soon as they are known, and its runs are in
    folders of their own. A search that was killed at any time resumes the trial that it was in, and the runs of that
    trial from their checkpoints. With one process, an interrupted search tries the same settings as one that was not
    interrupted.

    Args:
        folder: the folder of the search.
        plan: what to search.

    Returns:
        The study.

    Raises:
        ConfigError: a part of the experiment cannot be built.
        CheckpointError: a run of an interrupted trial has no intact checkpoint.
        Stopped: a signal was received; the current run is saved.
    """
    study = open_study(folder, plan.settings)
    while True:
        folder.write_results(study)  # a killed process may have reported a trial to the study without writing it here
        if (claimed := _claim(study, folder, plan.settings)) is None:
            break
        trial, held = claimed
        try:
            _run(study, trial, folder, plan)
        finally:
            held.unlock()
        _log_trial(study, trial.number, plan.settings.trials)
    folder.plots.mkdir(exist_ok=True)
    with folder.alone():
        for name, png in draw(study).items():
            (folder.plots / f"{name}.png").write_bytes(png)
    return study


def open_study(folder: SearchDir, settings: SearchConfig) -> optuna.Study:
    """The study of a folder, new or existing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Steps are frames, counted over all seeds of a trial; the warm-up is within the first seed's.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=settings.startup) if settings.prune else None
    return optuna.create_study(
        storage=f"sqlite:///{folder.database}",
        study_name="search",
        direction="maximize",
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


class Pruning(Callback):
    """Reports evaluations to a trial, and stops the run when the study's pruner decides to.

    The reported value is the mean of the evaluation and the final evaluations of the trial's earlier seeds: the score
    that the trial would have if this seed ended here.

    Args:
        trial: the trial that the run belongs to.
        reported: steps that were reported before the trial was interrupted.
        finals: final evaluations of the trial's earlier seeds.
        before: frames that the earlier seeds were trained for.
        warmup: frames of a run before which nothing is pruned.
    """

    def __init__(self, trial: Trial, reported: set[int], finals: Sequence[float], before: int, warmup: float) -> None:
        self._trial = trial
        self._reported = reported
        self._finals = finals
        self._before = before
        self._warmup = warmup
        self.pruned = False

    def after_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Report the evaluation, and stop the run if it is to be pruned."""
        if trainer.frames < self._warmup:
            return
        step = self._before + trainer.frames
        if step not in self._reported:  # a run that resumes from a checkpoint repeats evaluations
            self._trial.report(fmean([*self._finals, evaluation.mean_return]), step)
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
    """Train a trial's seeds one after another, and report the result to the study.

    Raises:
        As `search`; nothing is then reported to the study, and the trial can be resumed.
    """
    chosen = overrides_of({key: _suggest(trial, key, plan.settings) for key in plan.settings.space})
    reported = set(study.trials[trial.number].intermediate_values)
    log.info("Trial %d: %s", trial.number, " ".join(chosen))
    finals: list[float] = []
    frames = 0
    for seed in range(plan.settings.seeds):
        if trial.should_prune():
            break
        run = folder.run(trial.number, seed)
        overrides = [*plan.overrides, *chosen, f"seed={seed}"]
        composed = plan.load(overrides)
        begin = open_run(composed, overrides, run, "auto")
        total = begin.config.total_frames
        if begin.complete:
            finals.append(begin.complete_return)
            frames += total
            continue
        trainer = Trainer(begin.config, begin.run, begin.checkpoint)
        pruning = Pruning(trial, reported, finals, frames, plan.settings.warmup * total)
        trainer.callbacks["rlexp-search"] = pruning
        try:
            summary = trainer.fit()
        except (ConfigError, OSError, Stopped):
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            study.tell(trial, state=TrialState.FAIL)
            return
        if pruning.pruned:
            break
        finals.append(summary["final"]["eval/return"])
        frames += total
    if len(finals) == plan.settings.seeds:
        study.tell(trial, fmean(finals))
    else:
        study.tell(trial, state=TrialState.PRUNED)


def _suggest(trial: Trial, key: str, settings: SearchConfig) -> Any:
    candidates = settings.space[key]
    if candidates.choices is not None:
        return trial.suggest_categorical(key, [_scalar(choice) for choice in candidates.choices])
    assert candidates.low is not None
    assert candidates.high is not None
    if isinstance(candidates.low, int) and isinstance(candidates.high, int):
        return trial.suggest_int(key, candidates.low, candidates.high, log=candidates.log)
    return trial.suggest_float(key, candidates.low, candidates.high, log=candidates.log)


def _scalar(choice: Any) -> Any:
    """A choice as the database can store it: lists as JSON, as they are written on the command line."""
    return choice if choice is None or isinstance(choice, str | int | float) else json.dumps(choice)


def _log_trial(study: optuna.Study, number: int, trials: int) -> None:
    ended = study.trials[number]
    score = f" with {ended.value:,.1f}" if ended.state is TrialState.COMPLETE else ""
    best = best_of(study)
    so_far = "" if best is None else f"; the best so far is trial {best.number} with {best.value:,.1f}"
    log.info("Trial %d of %d: %s%s%s.", number, trials, state_of(ended), score, so_far)


def _locked(held: RunDir) -> bool:
    try:
        held.lock()
    except RunBusyError:
        return False
    return True
