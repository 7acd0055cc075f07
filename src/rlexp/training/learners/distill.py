"""Distillation: a student acts, and learns what a trained teacher, which may see more, would do in its place."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import kl_divergence
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import TransformedEnv
from torchrl.modules import ProbabilisticActor

from rlexp.agent.agent import Agent
from rlexp.agent.policy import Policy, UnfaithfulPolicyError
from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK
from rlexp.envs.entries import OBSERVATION
from rlexp.envs.raw_observations import RAW
from rlexp.envs.torchrl import entries
from rlexp.experiment import ExperimentConfig, own_packages, read_config
from rlexp.losses import DistillConfig
from rlexp.losses.distill import TEACHER
from rlexp.policies import ActorCritic
from rlexp.policies.spaces import choices, described
from rlexp.runs import checkpoint
from rlexp.seeding import unmoved_generators
from rlexp.training.learners.ppo import PPOLearner

log = logging.getLogger(__name__)


class Teacher:
    """A trained policy that says what it would do: from raw observations, by statistics of its own, both frozen.

    Args:
        config: the student's checked config; its loss is a `DistillConfig`.
        env: the student's environment.
        student: the actor that learns.
        device: where the teacher goes.

    Attributes:
        policy: the teacher.
        identity: ``sha256`` of its weights and statistics, and the ``frames`` of its training.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit its environment as installed here.
        ConfigError: it cannot be built, needs more than single observations, or does not fit the student.
    """

    def __init__(
        self, config: ExperimentConfig, env: TransformedEnv, student: ProbabilisticActor, device: torch.device
    ) -> None:
        assert isinstance(config.loss, DistillConfig)
        self._loss = config.loss
        with unmoved_generators(), closing(self._load(config, device)) as agent:
            try:
                self.policy = Policy(agent)
            except UnfaithfulPolicyError as error:
                raise self._refused(f"{error}") from error
            if problems := [*self._problems(agent, config, env)] or [*self._distance_problems(student, env)]:
                raise ConfigError(problems)
        self.identity: dict[str, Any] = {"sha256": digest(self.policy.state_dict()), "frames": agent.frames}
        log.info("Teacher: %s, %s after %s frames.", agent.path, agent.experiment.env.name, f"{agent.frames:,}")

    @torch.no_grad()
    def label(self, batch: TensorDictBase) -> None:
        """Write what it would do into a batch ``[num_envs, steps]`` that holds raw observations.

        That is its action, ``teacher_action``, or the parameters of its distribution, such as ``teacher_loc``.
        """
        raw = {key: batch[RAW, key].flatten(0, 1) for key in self.policy.shapes}
        mask = batch[ACTION_MASK].flatten(0, 1) if self.policy.masked else None
        for key, value in self._said(raw, mask).items():
            batch[TEACHER + key] = value.unflatten(0, batch.shape)

    def _said(self, raw: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """What it says of steps ``[n]``, by names without `TEACHER`."""
        actor = self.policy.actor
        seen = self.policy.inputs(raw if self.policy.has_entries else raw[OBSERVATION], mask)
        if self._loss.distance == "l2":
            return {"action": actor.get_dist(seen).deterministic_sample}
        parameters = actor.get_dist_params(seen)
        return {str(key): parameters[key] for key in actor.dist_params_keys}

    def _load(self, config: ExperimentConfig, device: torch.device) -> Agent:
        """The agent of the checkpoint; its config may import what the student's own does, and ``loss.trust``."""
        saved = checkpoint.load(Path(self._loss.teacher))
        trust = own_packages(config.to_dict()) | {*self._loss.trust}
        try:
            return Agent(saved, device, config=read_config(saved.config, trust))
        except ConfigError as error:
            found = (f"its {p.key} {p.message}".replace("say trust=", "say loss.trust=") for p in error.problems)
            raise self._refused(" ".join(found)) from error

    def _problems(self, agent: Agent, config: ExperimentConfig, env: TransformedEnv) -> Iterator[Problem]:
        """What the teacher reads or does that the student's environment does not have."""
        policy, there = self.policy, entries(env.base_env)
        if policy.recurrent:
            yield self._problem("is recurrent: only a feed-forward policy can be asked about any step of a batch.")
        for key, shape in policy.shapes.items():
            if key not in there or there[key].shape != shape:
                shown = ", ".join(f"{name} {list(spec.shape)}" for name, spec in there.items())
                yield self._problem(f"reads {key} {list(shape)}, and this environment observes {shown}.")
        if policy.masked != (ACTION_MASK in env.base_env.observation_spec_unbatched):
            which = ("", "none") if policy.masked else ("no ", "them")
            yield self._problem("reads {}action masks, and this environment has {}.".format(*which))
        skip, own = agent.experiment.env.frame_skip, config.env.frame_skip
        if skip != own:
            yield self._problem(f"was trained with env.frame_skip={skip}, and here it is {own}.")
        specs = [(e.base_env.action_spec_unbatched, e.action_spec_unbatched) for e in (agent.env, env)]
        if any(theirs.to("cpu") != ours.to("cpu") for theirs, ours in zip(*specs, strict=True)):
            theirs, ours = (", in its policy ".join(dict.fromkeys(map(_shown, pair))) for pair in specs)
            yield self._problem(f"acts by actions that are {theirs}, and this environment's are {ours}.")

    def _distance_problems(self, student: ProbabilisticActor, env: TransformedEnv) -> Iterator[Problem]:
        """Why there is no such distance between the two policies."""
        distance = self._loss.distance
        if distance == "l2":
            if choices(env.action_spec_unbatched):
                yield Problem("loss.distance", "is of real numbers, and these actions are choices: kl.", distance)
            return
        ours, theirs = (actor.module[-1].distribution_class for actor in (student, self.policy.actor))
        if ours is not theirs:
            message = f"is not known from the teacher's {theirs.__name__} to this policy's {ours.__name__}"
            yield Problem("loss.distance", f"{message}: give the student the teacher's distribution, or l2.", distance)
            return
        said = self._said(*self._zeros())
        policy = student.build_dist_from_params(TensorDict(said))
        try:
            kl_divergence(policy, policy)
        except NotImplementedError:
            yield Problem("loss.distance", f"has no closed form for {ours.__name__}: give l2.", distance)

    def _zeros(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """A row of arguments of `_said`."""
        policy = self.policy
        raw = {key: torch.zeros(1, *shape, dtype=policy.dtypes[key]) for key, shape in policy.shapes.items()}
        return raw, torch.ones(1, policy.values, dtype=torch.bool) if policy.masked else None

    def _problem(self, message: str) -> Problem:
        return Problem("loss.teacher", message, self._loss.teacher)

    def _refused(self, message: str) -> ConfigError:
        return ConfigError([self._problem(message)])


class DistillLearner(PPOLearner):
    """PPO's loop, epochs of minibatches, over a `DistillLoss`: each batch is labelled by the teacher first.

    The student acts in its environment and the teacher says what it would do in the states that the student comes to
    (DAgger, Ross et al. 2011, with the student alone acting and the newest batch alone learned from).

    Args:
        config: the checked config; its loss is a `DistillConfig`.
        networks: what it trains; their parameters become views of one vector, ``weights``.
        device: where the networks are and the batches come to.
        env: the student's environment.

    Attributes:
        teacher: labels the batches.

    Raises:
        CheckpointError, ConfigError: as `Teacher` and `PPOLearner`.
    """

    def __init__(
        self, config: ExperimentConfig, networks: ActorCritic, device: torch.device, env: TransformedEnv
    ) -> None:
        self.teacher = Teacher(config, env, networks.actor, device)
        super().__init__(config, networks, device)

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """As `PPOLearner.update`, on a batch ``[num_envs, steps]`` that holds raw observations."""
        self.teacher.label(batch)
        return super().update(batch, progress)

    def state_dict(self) -> dict[str, Any]:
        """As `PPOLearner.state_dict`, and which teacher it was."""
        return super().state_dict() | {"teacher": self.teacher.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ConfigError: the teacher was another.
        """
        saved, found = state["teacher"], self.teacher.identity
        if saved["sha256"] != found["sha256"]:
            message = (
                f"holds another teacher, of {found['frames']:,} frames, than the run began with: that had "
                f"{saved['frames']:,} frames, and weights and statistics of SHA-256 {saved['sha256']}. "
                "loss.teacher=RUN_DIR/checkpoints/... names a checkpoint."
            )
            assert isinstance(self.config.loss, DistillConfig)
            raise ConfigError([Problem("loss.teacher", message, self.config.loss.teacher)])
        super().load_state_dict(state)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name} {state[name].dtype} {list(state[name].shape)}\n".encode())
        found.update(state[name].numpy(force=True).tobytes())
    return found.hexdigest()


def _shown(spec: TensorSpec) -> str:
    bounds = f", from {spec.space.low.tolist()} to {spec.space.high.tolist()}" if isinstance(spec, Bounded) else ""
    return f"{described(spec)}{bounds}"
