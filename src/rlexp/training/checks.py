"""What ``checks=true`` asserts of an experiment's own parts, beside what every run does."""

from __future__ import annotations

import logging
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchrl.envs import SerialEnv
from torchrl.envs.utils import check_env_specs, step_mdp

from rlexp.agent import Agent
from rlexp.agent.evaluation import Evaluation, evaluate
from rlexp.config import ConfigError, Problem
from rlexp.distributed import Group, train_command
from rlexp.envs import EnvConfig
from rlexp.envs.actions import ACTION_MASK
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.normalization import init_normalization
from rlexp.experiment import ExperimentConfig
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import Checkpoint
from rlexp.seeding import seed_everything, unmoved_generators

log = logging.getLogger(__name__)

_STEPS = 100  # random steps of each simulator


class CheckError(Exception):
    """A part does not do what training relies on; the message says what it does instead."""


def check_actor(actor: nn.Module) -> None:
    """Refuse an actor that is one policy in training and another in evaluation.

    Raises:
        ConfigError: it has a layer such as Dropout, with which the probabilities of actions in an update are not those
            that they were drawn with.
    """
    for module in actor.modules():
        if isinstance(module, _DropoutNd | _BatchNorm) or (isinstance(module, nn.RNNBase) and module.dropout > 0):
            message = (
                f"has {type(module).__name__}{' with dropout' * isinstance(module, nn.RNNBase)}, with which an update "
                "trains another policy than the one that acted. Leave it out; LayerNorm (policy.layer_norm=true) is "
                "the same in both."
            )
            raise ConfigError([Problem("policy", f"The actor {message}")])


def check_learners(config: ExperimentConfig, start: Checkpoint | None, group: Group) -> None:
    """Refuse what several learners cannot train, and a run of another number of them.

    Raises:
        ConfigError: with every problem found.
    """
    found = list(config.problems_for(group.size))
    if start is not None and (learners := start.state.learners) != group.size:
        message = (
            f"was trained by {_several(learners)}, and now there would be {_several(group.size)}: its simulators and "
            f"random generators belong to those. Resume it with {train_command(learners)}, or begin a new run with "
            "warm_start=."
        )
        found.append(Problem("resume", message, str(start.path)))
    if found:
        raise ConfigError(found)


def _several(learners: int) -> str:
    return "1 learner" if learners == 1 else f"{learners} learners"


def check_env(spec: EnvConfig) -> None:
    """Assert that an environment gives what its specs say (`check_env_specs`), and the same for the same seed.

    One that is a batch by itself resets the rows that it is told to, and no others.

    Raises:
        ConfigError: it does not.
    """
    with unmoved_generators():
        first, again = _random_steps(spec, 0), _random_steps(spec, 1)
        restarts_all = _restarts_all(spec)
    for key, value in first.items(include_nested=True, leaves_only=True):
        if not torch.equal(value, again[key]):
            name = key if isinstance(key, str) else ".".join(key)
            message = (
                f"{name} differs for the same seed and the same actions, so that no run could be repeated: draw "
                "from self.np_random, which super().reset(seed=seed) seeds, and keep nothing beyond an episode."
            )
            raise ConfigError([Problem("env", message, spec.name)])
    if restarts_all:
        message = (
            "restarts all of its rows when the episode of one ends: its _reset must restart the rows of the mask "
            '"_reset" alone, as rlexp.envs.tensors.TensorEnv does. An environment that is no batch is reset by itself '
            "in each of env.num_envs copies."
        )
        raise ConfigError([Problem("env", message, spec.name)])


def _restarts_all(spec: EnvConfig) -> bool:
    """Whether an environment that is a batch by itself resets all of its rows where it is told to reset the first.

    Its other rows then go on as after a reset of all, and not as after none. Where all draw from one generator, they
    may go on in a third way.
    """
    after: list[TensorDictBase] = []
    for rows in (0, 1, spec.num_envs):
        seed_everything(0)
        with closing(spec.build_base(spec.num_envs)) as env:
            if isinstance(env, ArrayEnv | SerialEnv) or ACTION_MASK in env.observation_spec_unbatched:
                return False
            env.set_seed(0)
            now = step_mdp(env.rollout(3, break_when_any_done=False)[:, -1])
            action = env.rand_action()["action"]
            if rows:
                now = env.reset(now.set("_reset", torch.arange(spec.num_envs, device=env.device)[:, None] < rows))
            after.append(env.step(now.set("action", action))["next"][1:])
    going_on, partly, whole = after
    return bool((partly == whole).all() and not (partly == going_on).all())


def _random_steps(spec: EnvConfig, elsewhere: int) -> TensorDictBase:
    """Steps with the same actions and the environment's same seed, and another of Python's and NumPy's generators."""
    seed_everything(0)
    random.seed(elsewhere)
    np.random.seed(elsewhere)
    with closing(spec.build(spec.num_envs)) as env:
        env.set_seed(0)
        if isinstance(env.base_env, ArrayEnv):
            env.base_env.check_every_step()
        init_normalization(env, spec.init_random_steps)
        try:
            check_env_specs(env)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError([Problem("env", f"gives what its specs do not say: {error}", spec.name)]) from error
        steps: TensorDictBase = env.rollout(_STEPS, break_when_any_done=False)
    return steps


def check_checkpoint(path: Path, final: Evaluation, device: torch.device, config: ExperimentConfig) -> None:
    """Assert that the agent in a checkpoint is the one that was evaluated.

    Args:
        path: the checkpoint.
        final: an evaluation of the agent that it was saved from.
        device: of that evaluation.
        config: the run's own.

    Raises:
        CheckError: its episodes are others.
    """
    saved = checkpoint.load(path)
    for reason in saved.state.inexact:
        log.warning("A resumed run will not be exact: %s.", reason)
    with unmoved_generators(), closing(Agent(saved, device, config=config)) as agent:
        found = evaluate(agent.env, agent.networks.actor, final.seeds, kernels=agent.experiment.use_kernels)
    if found.returns != final.returns:
        raise CheckError(
            f"{path} gives returns {found.returns}, the agent that it was saved from gave {final.returns}: the policy "
            "holds something that is neither parameter nor buffer, or the environment something beyond an episode."
        )
    log.info(
        "Checks passed: the environment keeps to its spaces and repeats itself for a seed, and the checkpoint gives "
        "the final evaluation again."
    )
