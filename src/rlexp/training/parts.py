"""What a trainer is made of, built from its config in the order in which one part needs another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torchrl.collectors import BaseCollector
from torchrl.envs import TransformedEnv

from rlexp.agent.video import check_recording
from rlexp.callbacks import Callback
from rlexp.collectors import Source, WorkersConfig
from rlexp.config import ConfigError, Problem, build_at
from rlexp.distributed import ALONE, Group
from rlexp.envs import EnvConfig
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.normalization import init_normalization
from rlexp.envs.raw_observations import keep_raw
from rlexp.envs.state import check_one_process, load_transforms_state, transforms_state
from rlexp.experiment import ExperimentConfig
from rlexp.machine import cores, local_device, pick_device, set_threads
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import carry_state
from rlexp.seeding import seed_everything, unmoved_generators
from rlexp.training.checks import check_actor, check_env
from rlexp.training.evaluator import Evaluator
from rlexp.training.learners import Learner, build_learner

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """The parts of a run.

    Attributes:
        device: where networks and batches are.
        env: the training environment, with its transforms.
        networks: actor and critic.
        evaluator: evaluates the policy.
        learner: improves the networks on a batch.
        threads: of torch, in the update.
        collector: yields batches ``[num_envs, steps]``.
        callbacks: of the user's own, by name.
    """

    device: torch.device
    env: TransformedEnv
    networks: ActorCritic
    evaluator: Evaluator
    learner: Learner
    threads: int
    collector: BaseCollector
    callbacks: dict[str, Callback]


def build_parts(
    config: ExperimentConfig,
    iteration: int | None,
    watched: list[object],
    closing: ExitStack,
    group: Group = ALONE,
    statistics: Mapping[str, Any] | None = None,
) -> Parts:
    """Build the parts: of several learners, of one that has its share of the environments.

    Args:
        config: the checked config.
        iteration: batches trained on before, of a run that is resumed; None starts afresh.
        watched: takes the environments that this process steps, as soon as there are any.
        closing: takes what closes the parts; where one cannot be built, the caller closes those before it.
        group: the learners.
        statistics: the transforms' state that training begins with; None starts from random steps. What does not fit
            is left to whoever loads the rest of it.

    Raises:
        ConfigError: a part cannot be built with these settings.
        CheckpointError: a teacher cannot be read.
    """
    if config.checks:
        check_env(config.env)
    if config.evaluation.video_interval is not None:
        check_recording(config.env, "evaluation.video_interval")
    device = pick_device(config.device) if group.size == 1 else local_device(config.device)
    torch.set_num_threads(1)  # the first weights must not depend on how many cores this machine has
    seed_everything(config.seed)
    group.seed(config.seed)

    share = config.share(group.size)
    env_config = with_workers(share).on(device)
    env = env_config.build(env_config.num_envs)
    closing.callback(_close, "the environment", partial(env.close, raise_if_closed=False))
    watched.append(env.base_env)
    if group.size > 1 or isinstance(share.collector, WorkersConfig):
        check_one_process(env)
    env.base_env.timeout = config.collector.timeout
    if isinstance(env.base_env, ArrayEnv):
        env.base_env.first_row = group.rank * env_config.num_envs
        if config.checks:
            env.base_env.check_every_step()
    seed = config.seed if iteration is None else _seed_after(config.seed, iteration)
    env.set_seed(seed)
    with group.own_draws():
        init_normalization(env, env_config.init_random_steps)
    if statistics is not None:  # before the collector shows the policy its first observation
        with suppress(Exception):  # whatever a state that is not this run's leads to
            load_transforms_state(env, statistics)
    group.broadcast(transforms_state(env).values())
    networks = config.policy.build(env, device)
    check_actor(networks.actor)
    group.broadcast([*networks.actor.state_dict().values(), *networks.critic.state_dict().values()])
    carry_state(env, networks.actor)
    evaluator = Evaluator(config, env_config, networks, group)
    closing.callback(_close, "the evaluation's environment", evaluator.close)
    watched.append(evaluator.env.base_env)
    learner = build_learner(config, networks, device, env, group)
    busy = config.collector.busy_while_learning
    threads = set_threads(config.threads, learner.weights.numel(), config.minibatch_size // group.size, busy)
    source = Source(env_config, config.policy, seed, config.use_kernels, group, raw=config.loss.reads_raw)
    if source.raw:
        keep_raw(env)
    collector = share.collector.build(env, networks.actor, source, device)
    closing.callback(_close, "the collector", collector.shutdown)
    callbacks = {name: build_at(f"callbacks.{name}", node.build) for name, node in config.callbacks.items()}
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            message = "is no rlexp.callbacks.Callback: make it a subclass, which overrides what it needs."
            raise ConfigError([Problem(f"callbacks.{name}", message, type(callback).__name__)])
    return Parts(device, env, networks, evaluator, learner, threads, collector, callbacks)


def _close(part: str, close: Callable[[], object]) -> None:
    """Close a part; what it raises then is logged, since the run's results are whole."""
    try:
        close()
    except Exception as error:
        log.warning("%s cannot be closed: %s: %s", part.capitalize(), type(error).__name__, error)


def with_workers(config: ExperimentConfig) -> EnvConfig:
    """The environment with the number of workers that ``env.num_workers=auto`` stands for, which is logged.

    Where a collector divides the simulators among its processes, each of them has one worker.

    Raises:
        ConfigError: a simulator cannot be made.
    """
    if isinstance(config.collector, WorkersConfig):
        return config.env
    with unmoved_generators():
        return config.env.with_workers(config.total_frames, cores())


def _seed_after(seed: int, iteration: int) -> int:
    """Seeds episodes that begin afresh after a resume, so that they are not the run's first ones again."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])
