"""Settings of MuJoCo tasks of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlexp.config import ConfigError, Count, Node, Positive, Problem, build_at, did_you_mean
from rlexp.envs.config.base import EnvConfig

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


class MujocoConfig(EnvConfig):
    """A MuJoCo task of the user's own, or one of ours, with a model that varies from episode to episode.

    Builds `rlexp.envs.mujoco.batch.BatchedMujoco`.

    Attributes:
        task: a `rlexp.envs.mujoco.task.MujocoTask`.
        num_workers: threads that step the simulations; ``auto`` is one per core.
        max_episode_steps: steps of the task, before ``frame_skip``, after which an episode is truncated.
        randomization: ranges of factors of the model's fields, by their names in ``mujoco.MjModel``; a factor is drawn
            for each simulation at each reset, in training and in evaluation.
    """

    task: Node
    num_workers: Count | Literal["auto"]
    max_episode_steps: Count
    randomization: dict[str, Annotated[list[Positive], Field(min_length=2, max_length=2)]]

    @property
    def has_own_code(self) -> bool:
        """As `EnvConfig` has it, or the task's own."""
        return self.task.target.split(".")[0] != "rlexp" or super().has_own_code

    def problems(self) -> Iterator[Problem]:
        """No idle threads, and only fields that a model has."""
        if self.num_workers != "auto" and self.num_workers > self.num_envs:
            message = f"is more than there are simulators: env.num_envs is {self.num_envs}."
            yield Problem("num_workers", message, str(self.num_workers))
        if not self.randomization:
            return
        from rlexp.envs.mujoco.randomization import randomizable

        known = randomizable()
        for name, (low, high) in self.randomization.items():
            if name not in known:
                message = f"mujoco.MjModel has no such field of numbers. {did_you_mean(name, known)}"
                yield Problem(f"randomization.{name}", message)
            elif low > high:
                message = "is empty: give the smallest factor first, then the largest."
                yield Problem(f"randomization.{name}", message, f"[{low:g}, {high:g}]")

    def with_workers(self, frames: int, cores: int) -> MujocoConfig:
        """With one thread per core, where ``auto`` leaves it open."""
        if self.num_workers != "auto":
            return self
        return self.model_copy(update={"num_workers": min(cores, self.num_envs)})

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulations, divided among no more threads than there are simulations."""
        from rlexp.envs.mujoco.batch import BatchedMujoco
        from rlexp.envs.mujoco.task import MujocoTask

        task = build_at("env.task", self.task.build)
        if not isinstance(task, MujocoTask):
            message = f"gives a {type(task).__name__}, not a rlexp.envs.mujoco.task.MujocoTask."
            raise ConfigError([Problem("env.task", message, self.task.target)])
        if not task.model.nu or not task.model.actuator_ctrllimited.all():
            message = "every actuator of its model needs a ctrlrange: actions are bounded by it."
            raise ConfigError([Problem("env.task", message, self.task.target)])
        return BatchedMujoco(
            task,
            self.name,
            num_envs=num_envs,
            max_episode_steps=self.max_episode_steps,
            repeat=self.frame_skip,
            num_threads=1 if self.num_workers == "auto" else min(self.num_workers, num_envs),
            randomization={name: (low, high) for name, (low, high) in self.randomization.items()},
        )
