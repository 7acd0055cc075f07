"""Settings of Gymnasium's environments, by the backend that steps them."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from rlexp.config import ConfigError, Problem, did_you_mean
from rlexp.envs.config.simulators import BatchedConfig, SimulatorConfig

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

ENVPOOL_OWN = {"num_envs", "num_threads", "batch_size", "seed"}
ENVPOOL_OWN_HINT = "use env.num_envs, env.num_workers and seed"

Backend = Literal["gymnasium", "mujoco", "envpool"]

log = logging.getLogger(__name__)


class GymConfig(SimulatorConfig):
    """Any Gymnasium environment whose actions are a Box, Discrete, MultiDiscrete or MultiBinary.

    Builds `rlexp.envs.gymnasium.batched.BatchedGymEnv`, `rlexp.envs.mujoco.batch.BatchedMujoco` or
    `rlexp.envs.envpool.BatchedEnvPool`.

    Attributes:
        id: Gymnasium's id; ``module:id`` imports the module that registers it first.
        backend: what steps the simulators: ``gymnasium``; ``mujoco``, MuJoCo's own batches for Gymnasium's MuJoCo
            tasks, equal bit for bit; ``envpool``, EnvPool's C++ threads for the tasks that it has; ``auto``, ``mujoco``
            for two simulators or more where it can, and ``gymnasium`` elsewhere.
        action_mask: where action masks come from (`rlexp.envs.actions.ActionMask`): ``auto``, the entry
            ``action_mask`` of a Dict observation, if it has one; ``info``, that of ``info``; false, nowhere.
    """

    id: str
    backend: Literal["auto", "gymnasium", "mujoco", "envpool"]
    action_mask: Literal["auto", "info", False]

    @property
    def resolved_backend(self) -> Backend:
        """The backend that ``auto`` stands for in training."""
        return self._backend_of(self.num_envs)

    def _backend_of(self, num_envs: int) -> Backend:
        """What steps so many simulators."""
        if self.backend != "auto":
            return self.backend
        return "mujoco" if self._slower_with_mujoco(num_envs) is None else "gymnasium"

    def _slower_with_mujoco(self, num_envs: int) -> str | None:
        """Why ``mujoco.batch`` is not taken for so many simulators; None where it is."""
        return "it steps a single simulator faster" if num_envs == 1 else self._without_mujoco()

    def _without_mujoco(self) -> str | None:
        """Why ``mujoco.batch`` cannot simulate this; None where it can."""
        import gymnasium

        from rlexp.envs.mujoco.tasks import TASKS

        if self.id not in TASKS:
            return f"mujoco.batch has no task for {self.id} (docs/environments.md)"
        spec, (name, version) = gymnasium.spec(self.id), self.id.split("-")
        entry = str(spec.entry_point)
        stock = entry.startswith("gymnasium.envs.mujoco.") and entry.endswith(f"_{version}:{name}Env")
        if not stock or spec.kwargs or spec.additional_wrappers:
            return f"{self.id} is registered otherwise than Gymnasium does"
        if self.from_pixels:
            return "env.from_pixels renders images"
        if self.action_mask == "info":
            return "its tasks have no env.action_mask"
        unknown = self.kwargs.keys() - inspect.signature(TASKS[self.id]).parameters.keys()
        if unknown:
            return f"mujoco.batch does not know env.kwargs.{min(unknown)}"
        return None

    @property
    def gymnasium_id(self) -> str:
        """Gymnasium's id of one simulator."""
        return self.id

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """The module that registers the id, and the keyword arguments."""
        module, colon, _ = self.id.rpartition(":")
        if colon:
            yield "id", module, self.id
        yield from super().imports()

    def problems(self) -> Iterator[Problem]:
        """The id must be registered, with a time limit: evaluation runs whole episodes."""
        yield from super().problems()
        yield from self._envpool_problems() if self.backend == "envpool" else self._gymnasium_problems()
        if self.action_mask == "info" and self.backend == "envpool":
            yield Problem("action_mask", "is read from Gymnasium's own simulators: use env.backend=gymnasium.", "info")
        if self.backend == "mujoco" and (reason := self._without_mujoco()) is not None:
            yield Problem("backend", f"cannot simulate this: {reason}. Use env.backend=auto or gymnasium.", "mujoco")

    def _gymnasium_problems(self) -> Iterator[Problem]:
        import gymnasium

        module, _, name = self.id.rpartition(":")
        if module:
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:  # whatever the module does
                yield Problem("id", f"its module cannot be imported: {type(error).__name__}: {error}.", self.id)
                return
        try:
            spec = gymnasium.spec(name)
        except gymnasium.error.Error:
            hint = did_you_mean(name, list(gymnasium.registry), f"{module}:" if module else "")
            yield Problem("id", f"Gymnasium has no environment of this id. {hint}", self.id)
        else:
            if spec.max_episode_steps is None and self.max_episode_steps is None:
                yield Problem("max_episode_steps", f"is needed: {self.id} is registered without a time limit.", "null")

    def _envpool_problems(self) -> Iterator[Problem]:
        if self.from_pixels:
            yield Problem("backend", "renders no images: use env.backend=gymnasium.", "envpool")
        for name in ENVPOOL_OWN & self.kwargs.keys():
            yield Problem(f"kwargs.{name}", f"is an argument of EnvPool's that rlexp sets: {ENVPOOL_OWN_HINT}.", name)
        try:
            import envpool
        except ImportError:
            yield Problem("backend", "needs the package envpool: pip install 'rlexp[envpool]'.", "envpool")
            return
        if self.id not in (ids := envpool.list_all_envs()):
            hint = did_you_mean(self.id, ids)
            yield Problem("id", f"EnvPool has no environment of this id; env.backend=gymnasium may. {hint}", self.id)

    @property
    def has_threads(self) -> bool:
        """MuJoCo and EnvPool have."""
        return self.resolved_backend != "gymnasium"

    def rendering(self) -> SimulatorConfig:
        """As `SimulatorConfig` has it: Gymnasium alone draws."""
        return super().rendering().model_copy(update={"backend": "gymnasium"})

    def with_workers(self, frames: int, cores: int) -> BatchedConfig:
        """As `BatchedConfig` has it, the backend logged as well."""
        if self.backend == "auto":
            reason = self._slower_with_mujoco(self.num_envs)
            log.info("env.backend=auto: %s", "mujoco" if reason is None else f"gymnasium, since {reason}")
        return super().with_workers(frames, cores)

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulators, divided among no more processes or threads than there are simulators."""
        match self._backend_of(num_envs):
            case "gymnasium":
                return self._batched(num_envs, self.action_mask)
            case "mujoco":
                return self._mujoco(num_envs)
        from rlexp.envs.envpool import BatchedEnvPool

        threads, kwargs = self._share(num_envs), self._kwargs()
        return BatchedEnvPool(
            self.id, num_envs=num_envs, frame_skip=self.frame_skip, num_threads=threads, kwargs=kwargs
        )

    def _mujoco(self, num_envs: int) -> EnvBase:
        import gymnasium

        from rlexp.envs.mujoco.batch import BatchedMujoco
        from rlexp.envs.mujoco.tasks import TASKS

        try:
            task = TASKS[self.id](**self.kwargs)
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ConfigError([Problem("env.id", f"cannot be made: {error}", self.id)]) from error
        return BatchedMujoco(
            task,
            self.id,
            num_envs=num_envs,
            max_episode_steps=self.max_episode_steps or gymnasium.spec(self.id).max_episode_steps,
            repeat=self.frame_skip,
            num_threads=self._share(num_envs),
            resets_unstable=True,
        )
