"""What of a Trainer must survive it: out of the live objects, and back into them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rlexp.agent.evaluation import Evaluation
from rlexp.config import ConfigError, Problem
from rlexp.envs.snapshot import SavesState, StateUnavailableError, saving
from rlexp.optim.schedules import load_schedule
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import TrainState
from rlexp.seeding import load_rng_state, rng_state

if TYPE_CHECKING:
    from rlexp.trainer import Trainer

log = logging.getLogger(__name__)


def get_state(trainer: Trainer) -> TrainState:
    """Everything of a run that must survive it."""
    reward_norm = trainer.learner.objective.reward_norm
    simulators, inexact = None, []
    try:
        simulators = _simulators(trainer).simulator_state()
    except StateUnavailableError as error:
        inexact.append(str(error))
    if trainer.device.type == "cuda":
        inexact.append("CUDA kernels may add in another order each time")
    return TrainState(
        frames=trainer.frames,
        iteration=trainer.iteration,
        final=None if trainer.final is None else dataclasses.asdict(trainer.final),
        best=None if trainer.best is None else dataclasses.asdict(trainer.best),
        best_frames=trainer.best_frames,
        actor=trainer.networks.actor.state_dict(),
        critic=trainer.networks.critic.state_dict(),
        transforms=trainer.env.transform.state_dict(),
        reward_norm={} if reward_norm is None else reward_norm.state_dict(),
        loss=trainer.learner.objective.loss.coefficients,
        optimizer=trainer.learner.optimizer.state_dict(),
        scheduler=trainer.learner.scheduler.state_dict(),
        simulators=simulators,
        collector=trainer.experiment.collector.state(trainer.collector),
        callbacks={name: callback.state() for name, callback in trainer.callbacks.items()},
        rng=rng_state(),
        inexact=inexact,
        session={"seconds": dict(trainer.seconds), "run_id": trainer.run_id},
    )


def load_state(trainer: Trainer, state: TrainState) -> None:
    """Let a freshly built trainer go on where `get_state` was called.

    Where the simulators' state is not to be had, their episodes begin afresh and all else goes on; the log says so.
    """
    trainer.frames, trainer.iteration = state.frames, state.iteration
    trainer.final = None if state.final is None else Evaluation(**state.final)
    trainer.best = None if state.best is None else Evaluation(**state.best)
    trainer.best_frames = state.best_frames
    trainer.seconds = dict(state.session["seconds"])
    trainer.run_id = state.session["run_id"]
    trainer.networks.actor.load_state_dict(state.actor)
    trainer.networks.critic.load_state_dict(state.critic)
    trainer.env.transform.load_state_dict(state.transforms)
    if (reward_norm := trainer.learner.objective.reward_norm) is not None:
        reward_norm.load_state_dict(state.reward_norm)
    for name, coefficient in trainer.learner.objective.loss.coefficients.items():
        coefficient.copy_(state.loss[name])
    trainer.learner.optimizer.load_state_dict(state.optimizer)
    load_schedule(trainer.learner.scheduler, state.scheduler)
    for name, callback in trainer.callbacks.items():
        callback.load_state(state.callbacks[name])
    for reason in state.inexact:
        log.warning("Resuming, but not to the bit: %s.", reason)
    _load_episodes(trainer, state)
    load_rng_state(state.rng)  # last: everything above may draw


def _load_episodes(trainer: Trainer, state: TrainState) -> None:
    if state.simulators is not None:
        try:
            _simulators(trainer).load_simulator_state(state.simulators)
        except StateUnavailableError as error:
            log.warning("Resuming, but not to the bit: %s.", error)
        else:
            trainer.experiment.collector.load_state(trainer.collector, state.collector)
            return
    log.warning("Every episode begins afresh.")
    if (reward_norm := trainer.learner.objective.reward_norm) is not None:
        reward_norm.discounted.zero_()


def _simulators(trainer: Trainer) -> SavesState:
    """What steps the simulators that the batches come from: the collector's workers, or the trainer's environment."""
    return saving(trainer.collector if isinstance(trainer.collector, SavesState) else trainer.env.base_env)


def warm_start(trainer: Trainer, path: Path) -> None:
    """Give a fresh run the weights and normalisation statistics of a checkpoint, and nothing else of it.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: its networks or statistics are of another shape.
    """
    start = checkpoint.load(path)
    try:
        trainer.networks.actor.load_state_dict(start.state.actor)
        trainer.networks.critic.load_state_dict(start.state.critic)
        trainer.env.transform.load_state_dict(start.state.transforms)
        if (reward_norm := trainer.learner.objective.reward_norm) is not None:
            reward_norm.load_state_dict(start.state.reward_norm | {"discounted": reward_norm.discounted})
    except RuntimeError as error:
        message = f"its policy, environment or normalisation is another than this run's: {error}"
        raise ConfigError([Problem("warm_start", message, str(path))]) from error
    log.info("Weights and statistics from %s.", start.path)
