"""The evaluator: when the current policy is evaluated, in an environment of its own, and which evaluation was best."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl.envs import TransformedEnv
from torchrl.modules import ProbabilisticActor

from rlexp.agent.evaluation import Evaluation, evaluate, evaluation_seeds
from rlexp.agent.video import recorded
from rlexp.distributed import ALONE, Group
from rlexp.envs import EnvConfig
from rlexp.envs.normalization import copy_normalization
from rlexp.envs.saving import StateUnavailableError
from rlexp.envs.state import copy_buffers, episodes_state, load_episodes_state
from rlexp.experiment import ExperimentConfig
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import carry_state
from rlexp.seeding import unmoved_generators
from rlexp.training.average import WeightAverage

log = logging.getLogger(__name__)


class Evaluator:
    """Evaluates the deterministic policy on the same episodes each time, and keeps the best.

    Args:
        config: the checked config.
        env: the environment's config, with the workers of this run.
        networks: whose actor is evaluated.
        group: the learners, the first of whom evaluates for all.

    Attributes:
        average: the running average that is evaluated in the actor's place; None evaluates the actor.
        final: the newest evaluation; None before the first.
        final_frames: when that was.
        best: the evaluation of the highest mean return.
        best_frames: when that was.
        inexact: why a resumed run's evaluations may be others; set by `state_dict`.
    """

    def __init__(self, config: ExperimentConfig, env: EnvConfig, networks: ActorCritic, group: Group = ALONE) -> None:
        self._config, self._networks, self._group = config, networks, group
        decay = config.evaluation.average
        self.average = None if decay is None else WeightAverage(networks.actor, decay)
        self._interval, self._video_interval = config.evaluation.interval, config.evaluation.video_interval
        self._seeds = evaluation_seeds(config.seed, config.evaluation.episodes)
        self.env: TransformedEnv = env.build(config.evaluation.episodes)
        try:
            self.env.base_env.timeout = config.collector.timeout
            carry_state(self.env, networks.actor)
        except BaseException:
            self.close()
            raise
        self.final: Evaluation | None = None
        self.final_frames: int | None = None
        self.best: Evaluation | None = None
        self.best_frames: int | None = None
        self.inexact: list[str] = []

    @property
    def _actor(self) -> ProbabilisticActor:
        return self.average.actor if self.average is not None and self.average.count else self._networks.actor

    def follow(self) -> None:
        """Let the average take in the actor, once after each batch."""
        if self.average is not None:
            self.average.update()

    def due(self, before: int, frames: int) -> bool:
        """Whether there is an evaluation after the batch that ended at ``frames`` and began at ``before``."""
        return frames >= self._config.total_frames or passed(self._interval, before, frames)

    def video_due(self, before: int, frames: int) -> bool:
        """Whether there is a video after that batch."""
        if self._video_interval is None:
            return False
        return frames >= self._config.total_frames or passed(self._video_interval, before, frames)

    def evaluate(self, training_env: TransformedEnv, frames: int) -> Evaluation:
        """Run whole episodes of the current policy.

        Args:
            training_env: its normalisation statistics of this moment are used.
            frames: simulator frames collected so far.

        Raises:
            EvaluationError: a reward is not finite, or an episode does not end; there is no final evaluation then.
        """
        copy_normalization(training_env, self.env)
        copy_buffers(training_env, self.env)
        self.final = None
        kernels = self._config.use_kernels
        # Environments of the user's own may seed or draw from the generators that training draws from.
        with self._group.own_draws(), unmoved_generators():
            found = self._group.from_main(lambda: evaluate(self.env, self._actor, self._seeds, kernels=kernels))
        self.final, self.final_frames = found, frames
        log.info(
            "%s frames: evaluation return %.1f (%d episodes of %.0f steps on average%s)",
            f"{frames:,}", found.mean_return, len(self._seeds), sum(found.lengths) / len(self._seeds),
            "" if self.average is None else ", weights averaged",
        )  # fmt: skip
        if self.best is None or found.mean_return > self.best.mean_return:
            self.best, self.best_frames = found, frames
        return found

    def record_video(self, training_env: TransformedEnv, frames: int, folder: Path) -> Path | None:
        """Record the first episode of an evaluation of the current policy.

        Returns:
            The MP4; None where it could not be made, which is logged.
        """
        seed = self._config.seed
        path = folder / f"{frames:012d}_seed{seed}.mp4"
        try:
            with recorded(self._config.env, path) as (env, recorder):
                copy_normalization(training_env, env)
                copy_buffers(training_env, env)
                carry_state(env, self._actor)
                evaluate(env, self._actor, evaluation_seeds(seed, 1), kernels=self._config.use_kernels)
            recorder.check()
        except Exception as error:  # whatever a renderer or an encoder raises, training continues
            log.warning("No video after %s frames: %s", f"{frames:,}", error)
            return None
        return path

    def count_anew(self, frames: int) -> None:
        """Forget the best evaluation, of a policy that no checkpoint holds any more, but for one of this moment."""
        log.warning("The best checkpoint so far is no longer there: the best evaluation is counted anew.")
        self.best, self.best_frames = (self.final, frames) if self.final_frames == frames else (None, None)

    def state_dict(self) -> dict[str, Any]:
        """The newest and the best evaluation, field by field, and the average.

        Seeds decide an evaluation of Gymnasium's simulators; those of the user's own may keep something from episode to
        episode, and are saved.
        """
        simulators, self.inexact = None, []
        if self._config.env.has_own_code:
            try:
                simulators = episodes_state(self.env)
            except StateUnavailableError as error:
                self.inexact = [f"in evaluation, {error}"]
        return {
            "simulators": simulators,
            "average": None if self.average is None else self.average.state_dict(),
            "final": None if self.final is None else dataclasses.asdict(self.final),
            "final_frames": self.final_frames,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "best_frames": self.best_frames,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.final = None if state["final"] is None else Evaluation(**state["final"])
        self.final_frames = state.get("final_frames")
        self.best = None if state["best"] is None else Evaluation(**state["best"])
        self.best_frames = state["best_frames"]
        if self.average is not None and state.get("average") is not None:
            self.average.load_state_dict(state["average"])
        if state["simulators"] is not None:
            try:
                load_episodes_state(self.env, state["simulators"])
            except StateUnavailableError as error:
                log.warning("Resuming, but not bit for bit: %s.", error)

    def close(self) -> None:
        """Close the environment."""
        self.env.close(raise_if_closed=False)  # torchrl's open when first used


def passed(interval: int | None, before: int, frames: int) -> bool:
    """Whether a multiple of ``interval`` lies between two counts of frames, the later one included."""
    return interval is not None and frames // interval > before // interval
