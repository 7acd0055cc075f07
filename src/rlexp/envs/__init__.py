"""Environments: an `EnvSpec` describes one, `build` makes the torchrl environment. Imports no torch until then."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from rlexp.config import ConfigError, Count, Node, Problem, Spec, build_at, did_you_mean

if TYPE_CHECKING:
    from torchrl.envs import EnvBase, TransformedEnv


class EnvSpec(Spec):
    """What every environment has, whatever simulates it. Subclasses build the simulator.

    Attributes:
        name: names the run's folder and groups its results.
        num_envs: simulators stepped together.
        frame_skip: simulator frames that one action lasts; frames everywhere count simulator frames.
        init_random_steps: random steps that the observation statistics start from; they count as no frames.
        transforms: the torchrl transforms, in order; names are free.
    """

    name: str
    num_envs: Count
    frame_skip: Count
    init_random_steps: Count
    transforms: dict[str, Node]

    def build_base(self, num_envs: int) -> EnvBase:
        """The bare simulators, batch size ``[num_envs]``, unseeded."""
        raise NotImplementedError

    def build(self, num_envs: int) -> TransformedEnv:
        """The simulators behind the transforms, ready to be seeded.

        Raises:
            ConfigError: the simulator or a transform cannot be built with these settings.
        """
        from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv

        transforms = [build_at(f"env.transforms.{name}", node.build) for name, node in self.transforms.items()]
        for needed in (StepCounter, RewardSum):
            if not any(isinstance(transform, needed) for transform in transforms):
                message = f"must hold a torchrl.envs.{needed.__name__}: the metrics read what it counts."
                raise ConfigError([Problem("env.transforms", message)])
        return TransformedEnv(self.build_base(num_envs), Compose(*transforms))


class GymEnv(EnvSpec):
    """Any Gymnasium environment with a Box or Discrete action space.

    Builds `rlexp.envs.gymnasium.BatchedGymEnv` or, with ``backend: envpool``, `rlexp.envs.envpool.BatchedEnvPool`.

    Attributes:
        id: Gymnasium's id; ``module:id`` imports the module that registers it first.
        backend: what steps the simulators: ``gymnasium``, or EnvPool's C++ threads for the tasks that it has.
        num_workers: processes (gymnasium; the training's own is one) or threads (envpool) that share them out.
        max_episode_steps: time limit in Gymnasium steps; None keeps the registered one.
        kwargs: further keyword arguments of ``gymnasium.make``.
    """

    id: str
    backend: Literal["gymnasium", "envpool"]
    num_workers: Count
    max_episode_steps: Count | None
    kwargs: dict[str, Any]

    def imports(self) -> Iterator[tuple[str, str]]:
        """The module that registers the id."""
        module, colon, _ = self.id.rpartition(":")
        if colon:
            yield "id", module

    def problems(self) -> Iterator[Problem]:
        """The id must be registered, with a time limit: evaluation runs whole episodes."""
        if self.num_workers > self.num_envs:
            message = f"is more than there are simulators: env.num_envs is {self.num_envs}."
            yield Problem("num_workers", message, str(self.num_workers))
        yield from self._envpool_problems() if self.backend == "envpool" else self._gymnasium_problems()

    def _gymnasium_problems(self) -> Iterator[Problem]:
        import gymnasium

        module, _, name = self.id.rpartition(":")
        try:
            if module:
                importlib.import_module(module)
            spec = gymnasium.spec(name)
        except ImportError as error:
            yield Problem("id", f"its module cannot be imported: {error}.", self.id)
        except gymnasium.error.Error:
            hint = did_you_mean(name, list(gymnasium.registry), f"{module}:" if module else "")
            yield Problem("id", f"Gymnasium has no environment of this id. {hint}", self.id)
        else:
            if spec.max_episode_steps is None and self.max_episode_steps is None:
                yield Problem("max_episode_steps", f"is needed: {self.id} is registered without a time limit.", "null")

    def _envpool_problems(self) -> Iterator[Problem]:
        try:
            import envpool
        except ImportError:
            yield Problem("backend", "needs the package envpool: pip install 'rlexp[envpool]'.", "envpool")
            return
        if self.id not in (ids := envpool.list_all_envs()):
            hint = did_you_mean(self.id, ids)
            yield Problem("id", f"EnvPool has no environment of this id; env.backend=gymnasium may. {hint}", self.id)

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulators, shared out over no more processes than there are simulators."""
        limit = {} if self.max_episode_steps is None else {"max_episode_steps": int(self.max_episode_steps)}
        workers = min(self.num_workers, num_envs)
        options = {"num_envs": num_envs, "frame_skip": self.frame_skip, **limit, **self.kwargs}
        if self.backend == "envpool":
            from rlexp.envs.envpool import BatchedEnvPool

            return BatchedEnvPool(self.id, num_threads=workers, **options)
        from rlexp.envs.gymnasium import BatchedGymEnv

        return BatchedGymEnv(self.id, num_workers=workers, **options)


__all__ = ["EnvSpec", "GymEnv"]
