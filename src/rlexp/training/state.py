"""What a checkpoint holds of a trainer, and how a trainer continues from it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rlexp.callbacks import Callback, Training
from rlexp.config import ConfigError, Problem
from rlexp.config.redaction import hidden_settings, hide, reveal
from rlexp.distributed import Group
from rlexp.envs.saving import SavesState, State, StateUnavailableError
from rlexp.envs.state import (
    episodes_state,
    load_episodes_state,
    load_transforms_state,
    transforms_state,
)
from rlexp.runs import store
from rlexp.runs.checkpoint import Checkpoint, TrainState
from rlexp.runs.errors import CheckpointError
from rlexp.runs.rundir import RunDir
from rlexp.seeding import load_rng_state, rng_state
from rlexp.training.evaluator import Evaluator

log = logging.getLogger(__name__)


class Restorable(Training, Protocol):
    """A trainer, as far as a checkpoint holds it.

    Attributes:
        device: where networks and batches are.
        evaluator: evaluates the policy.
        callbacks: of the user's own, by name.
        group: the learners.
        run: the run's folder.
        run_id: identifies the run to its sinks.
        seconds: spent so far on each part of the loop.
        saved: the newest checkpoint.
        rng: states of the random generators, where its steps have left them.
    """

    device: torch.device
    evaluator: Evaluator
    callbacks: dict[str, Callback]
    group: Group
    run: RunDir
    run_id: str
    seconds: dict[str, float]
    saved: Path | None
    rng: dict[str, Any]


def state_of(trainer: Restorable) -> TrainState:
    """The state of each part at this moment, without the config's secrets, which an environment may hold."""
    simulators, inexact, group = None, [], trainer.group
    try:
        simulators = _episodes_state(trainer)
    except StateUnavailableError as error:
        inexact.append(str(error))
    if trainer.device.type == "cuda":
        inexact.append("CUDA kernels may add in another order each time")
    evaluator = trainer.evaluator.state_dict()
    state = TrainState(
        frames=trainer.frames,
        iteration=trainer.iteration,
        evaluator=evaluator,
        actor=trainer.networks.actor.state_dict(),
        critic=trainer.networks.critic.state_dict(),
        transforms=transforms_state(trainer.env),
        learner=trainer.learner.state_dict(),
        simulators=group.joined(simulators),
        collector=group.joined(trainer.collector.state_dict()),
        callbacks={name: callback.state() for name, callback in trainer.callbacks.items()},
        rng=group.joined(trainer.rng | group.stream()),
        unverified=trainer.config.env.has_own_code or bool(trainer.callbacks),
        inexact=group.union([*inexact, *trainer.evaluator.inexact]),
        session={"seconds": dict(trainer.seconds), "run_id": trainer.run_id},
    )
    return _mapped(state, partial(hide, hidden=hidden_settings(trainer.config.to_dict())))


def _mapped(state: TrainState, change: Callable[[Any], Any]) -> TrainState:
    """The state with a change of those parts in which the user's own code may keep texts."""
    parts = {name: change(getattr(state, name)) for name in ("simulators", "evaluator", "callbacks", "collector")}
    return dataclasses.replace(state, **parts)


def load_state(trainer: Restorable, state: TrainState) -> None:
    """Continue from what `state_of` returned.

    Where the simulators' state cannot be restored, episodes begin afresh and everything else continues; the log says
    so.
    """
    state = _mapped(state, partial(reveal, hidden=hidden_settings(trainer.config.to_dict())))
    trainer.frames, trainer.iteration = state.frames, state.iteration
    trainer.seconds, trainer.run_id = dict(state.session["seconds"]), state.session["run_id"]
    trainer.evaluator.load_state_dict(state.evaluator)
    trainer.networks.actor.load_state_dict(state.actor)
    trainer.networks.critic.load_state_dict(state.critic)
    load_transforms_state(trainer.env, state.transforms)
    trainer.learner.load_state_dict(state.learner)
    for name, callback in trainer.callbacks.items():
        callback.load_state(state.callbacks.get(name, {}))
    for reason in state.inexact:
        log.warning("Resuming, but not bit for bit: %s.", reason)
    if state.unverified and not state.inexact:
        log.info("Whether your own code resumes bit for bit is not known; rlexp-verify RUN_DIR resume=true tries it.")
    _load_episodes(trainer, state)
    rng = trainer.group.own(state.rng)
    trainer.group.load_stream(rng)
    load_rng_state(rng)  # last: everything above may draw
    trainer.rng = rng_state()


def restore(trainer: Restorable, start: Checkpoint) -> None:
    """Continue from a checkpoint in the trainer's own folder, which holds nothing newer from then on.

    Raises:
        CheckpointError: its state does not fit the trainer.
    """
    try:
        load_state(trainer, start.state)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # whatever a state that is not this run's leads to
        raise CheckpointError(f"{start.path} does not fit its run: {error!r:.200}") from error
    trainer.saved = saved = trainer.run.checkpoints / start.path.name
    evaluator = trainer.evaluator
    if not trainer.group.from_main(lambda: store.resume_from(saved, evaluator.best_frames)):
        evaluator.count_anew(trainer.frames)


def warm_start(trainer: Restorable, source: Checkpoint) -> None:
    """Take the weights and normalisation statistics of a checkpoint, and nothing else.

    Raises:
        ConfigError: its networks or statistics are of another shape.
    """
    try:
        trainer.networks.actor.load_state_dict(source.state.actor)
        trainer.networks.critic.load_state_dict(source.state.critic)
        load_transforms_state(trainer.env, source.state.transforms)
        trainer.learner.warm_start(source.state.learner)
    except RuntimeError as error:
        message = f"its policy, environment or normalisation differs from this run's: {error}"
        raise ConfigError([Problem("warm_start", message, str(trainer.config.warm_start))]) from error
    average = source.state.evaluator.get("average")
    own = "" if average is None else " The weights are those that were trained, not their average, which was evaluated."
    log.info("Weights and statistics from %s.%s", source.path, own)


def _load_episodes(trainer: Restorable, state: TrainState) -> None:
    simulators = trainer.group.own(state.simulators)
    afresh = simulators is None
    if not afresh:
        try:
            _load_episodes_state(trainer, simulators)
        except StateUnavailableError as error:
            log.warning("Resuming, but not bit for bit: %s.", error)
            afresh = True
        else:
            trainer.collector.load_state_dict(trainer.group.own(state.collector))
    if trainer.group.largest(int(afresh)):  # of any learner, of which rank 0 speaks
        log.warning("Every episode begins afresh.")
    if afresh:
        trainer.learner.begin_episodes()


def _episodes_state(trainer: Restorable) -> State:
    """Of the environments that batches come from: the collector's workers', or the training environment."""
    if isinstance(trainer.collector, SavesState):
        return trainer.collector.simulator_state()
    return episodes_state(trainer.env)


def _load_episodes_state(trainer: Restorable, state: State) -> None:
    if isinstance(trainer.collector, SavesState):
        trainer.collector.load_simulator_state(state)
    else:
        load_episodes_state(trainer.env, state)
