"""Settings of the environments; imports torch only to build."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rlexp.config import Config, ConfigError, Count, Node, Positive, Problem, build_at, did_you_mean
from rlexp.config.trust import texts_that_name
from rlexp.machine import pick_device

if TYPE_CHECKING:
    from torchrl.envs import EnvBase, Transform, TransformedEnv


ENVPOOL_OWN = {"num_envs", "num_threads", "batch_size", "seed"}
ENVPOOL_OWN_HINT = "use env.num_envs, env.num_workers and seed"

log = logging.getLogger(__name__)


class EnvConfig(Config):
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

    @property
    def has_own_code(self) -> bool:
        """Whether code of the user's own takes part, which may keep state where it cannot be seen."""
        return any(node.target.split(".")[0] not in ("torchrl", "rlexp") for node in self.transforms.values())

    def with_workers(self, frames: int, cores: int) -> EnvConfig:
        """The same, with the processes or threads that step so many frames soonest on so many cores."""
        return self

    def on(self, device: object) -> EnvConfig:
        """The same, on a device where it leaves open on which."""
        return self

    def build_base(self, num_envs: int) -> EnvBase:
        """The bare simulators, batch size ``[num_envs]``, unseeded."""
        raise NotImplementedError

    def build(self, num_envs: int) -> TransformedEnv:
        """The simulators behind the transforms, ready to be seeded.

        Raises:
            ConfigError: the simulator or a transform cannot be built with these settings.
        """
        from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv

        from rlexp.envs.masks import masks_of

        transforms = [build_at(f"env.transforms.{name}", node.build) for name, node in self.transforms.items()]
        for needed in (StepCounter, RewardSum):
            if not any(isinstance(transform, needed) for transform in transforms):
                message = f"must hold a torchrl.envs.{needed.__name__}: the metrics read what it counts."
                raise ConfigError([Problem("env.transforms", message)])
        base = self.build_base(num_envs)
        try:
            self._check_normalization(base, transforms)
            return TransformedEnv(base, Compose(*masks_of(base), *transforms), auto_unwrap=False)
        except BaseException:
            base.close(raise_if_closed=False)
            raise

    def _check_normalization(self, base: EnvBase, transforms: Sequence[Transform]) -> None:
        """Statistics are of numbers, and whole ones such as an image's are none to be normalised."""
        from torchrl.envs import ObservationNorm

        from rlexp.envs.normalization import RunningObservationNorm
        from rlexp.envs.torchrl import entries

        seen = entries(base)  # as they are before any transform has made them anew
        made: set[str] = set()
        all_known = True
        for name, transform in zip(self.transforms, transforms, strict=True):
            if isinstance(transform, ObservationNorm):
                if isinstance(transform, RunningObservationNorm):
                    transform.choose(seen)
                for key in transform.in_keys:
                    if all_known and key not in seen.keys() | made:
                        hint = f"the environment observes {', '.join(seen)}: give env.transforms.{name}.in_keys."
                        raise ConfigError([Problem(f"env.transforms.{name}", f"normalises {key}, and {hint}")])
                    if key in seen.keys() - made and not seen[key].dtype.is_floating_point:
                        kind = f"{seen[key].dtype}".removeprefix("torch.")
                        message = f"normalises by statistics, and {key} is {kind} {list(seen[key].shape)}"
                        raise ConfigError([Problem(f"env.transforms.{name}", f"{message}: give env/transforms=none.")])
            made |= set(transform.out_keys or ())
            all_known &= bool(transform.out_keys)  # of others they are known once there is an environment


class PixelsConfig(Config):
    """What is seen of a rendered simulator: the newest gray pictures, uint8 ``[stack, size, size]``.

    Attributes:
        size: width and height of a picture.
        stack: pictures seen together.
    """

    size: Count
    stack: Count


class SimulatorConfig(EnvConfig):
    """Simulators with Gymnasium's interface, stepped together by `rlexp.envs.gymnasium.BatchedGymEnv`.

    Attributes:
        num_workers: processes (the training's own is one) or EnvPool's threads that share the simulators out; ``auto``
            is what `with_workers` finds, and one until then.
        max_episode_steps: time limit in Gymnasium steps; None keeps the task's own.
        from_pixels: observe rendered pictures, not what the simulator gives.
        pixels: what is seen of them.
        flatten: one vector of all entries of a Dict observation.
        kwargs: further keyword arguments of ``gymnasium.make``.
    """

    num_workers: Count | Literal["auto"]
    max_episode_steps: Count | None
    from_pixels: bool
    pixels: PixelsConfig
    flatten: bool
    kwargs: dict[str, Any]

    @property
    def gymnasium_id(self) -> str:
        """Gymnasium's id of one simulator."""
        raise NotImplementedError

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """The keyword arguments that may name a module or a file, such as MuJoCo's ``xml_file``."""
        for path, text in texts_that_name(self.kwargs, "kwargs"):
            yield path, "gymnasium", text

    def problems(self) -> Iterator[Problem]:
        """No idle workers, and no statistics of pictures."""
        if self.num_workers != "auto" and self.num_workers > self.num_envs:
            message = f"is more than there are simulators: env.num_envs is {self.num_envs}."
            yield Problem("num_workers", message, str(self.num_workers))
        if self.num_workers != "auto" and self.num_workers > 1 and not self.known_everywhere():
            yield Problem("num_workers", f"must be 1: {self.unknown_elsewhere()}", str(self.num_workers))
        if self.from_pixels:
            for name, node in self.transforms.items():
                seen = node.arguments.get("in_keys") or ()
                if "Norm" in node.target.rpartition(".")[2] and "observation" in seen:
                    message = "normalises by statistics, and pixels are not to be: give env/transforms=none."
                    yield Problem(f"transforms.{name}", message, node.target)

    def with_workers(self, frames: int, cores: int) -> SimulatorConfig:
        """With as many workers as pay, where ``auto`` leaves it open; says how many, and why.

        Raises:
            ConfigError: a simulator cannot be made.
        """
        if self.num_workers != "auto" or min(cores, self.num_envs) == 1:
            return self
        workers, reason = self._workers(frames, cores)
        log.info("env.num_workers=auto: %d of %d, since %s", workers, cores, reason)
        return self.model_copy(update={"num_workers": workers})

    def _workers(self, frames: int, cores: int) -> tuple[int, str]:
        """How many processes step the simulators soonest, and why."""
        from rlexp.envs.worker_count import best_workers

        if not self.known_everywhere():
            return 1, self.unknown_elsewhere()
        with closing(self.build_base(1)) as simulator:
            seconds = simulator.seconds_per_step()
        workers = best_workers(seconds, self.num_envs, cores, frames // (self.num_envs * self.frame_skip))
        return workers, f"a simulator's step takes {seconds * 1e6:,.0f} us"

    @property
    def has_own_code(self) -> bool:
        """As `EnvConfig` has it, or the simulator's own."""
        import gymnasium

        spec = gymnasium.registry.get(self.gymnasium_id.rpartition(":")[2])
        known = ("gymnasium", "shimmy", "dm_control", "rlexp")
        own = spec is not None and str(spec.entry_point).partition(":")[0].split(".")[0] not in known
        return own or super().has_own_code

    def known_everywhere(self) -> bool:
        """Whether another process can make the environment by its id; true of one that this process cannot make."""
        import gymnasium

        spec = gymnasium.registry.get(self.gymnasium_id)
        return spec is None or str(spec.entry_point).startswith("gymnasium.")

    def unknown_elsewhere(self) -> str:
        """Why an environment is not known everywhere, and the remedy."""
        id = self.gymnasium_id
        return (
            f"{id} is registered in this process alone; env.id=my_module:{id} lets others import the module that does."
        )

    def _share(self, num_envs: int) -> int:
        """Workers of so many simulators: no more than those, and one where ``auto`` is still open."""
        return 1 if self.num_workers == "auto" else min(self.num_workers, num_envs)

    def _kwargs(self) -> dict[str, Any]:
        """What ``gymnasium.make`` is given: the user's own, untouched, and the time limit."""
        limit = {} if self.max_episode_steps is None else {"max_episode_steps": int(self.max_episode_steps)}
        return limit | self.kwargs

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulators, shared out over no more processes than there are simulators."""
        return self._batched(num_envs)

    def _batched(self, num_envs: int, action_mask: Literal["auto", "info", False] = False) -> EnvBase:
        from rlexp.envs.gymnasium import BatchedGymEnv

        workers = self._share(num_envs)
        return BatchedGymEnv(
            self.gymnasium_id,
            num_envs=num_envs,
            frame_skip=self.frame_skip,
            num_workers=workers,
            kwargs=self._kwargs(),
            pixels=(self.pixels.size, self.pixels.stack) if self.from_pixels else None,
            action_mask=action_mask,
            flatten=self.flatten,
        )


class GymConfig(SimulatorConfig):
    """Any Gymnasium environment whose actions are a Box, Discrete, MultiDiscrete or MultiBinary.

    Builds `rlexp.envs.gymnasium.BatchedGymEnv`, `rlexp.envs.mujoco.batch.BatchedMujoco` or
    `rlexp.envs.envpool.BatchedEnvPool`.

    Attributes:
        id: Gymnasium's id; ``module:id`` imports the module that registers it first.
        backend: what steps the simulators: ``gymnasium``; ``mujoco``, MuJoCo's own batches for Gymnasium's MuJoCo
            tasks, equal to the bit; ``envpool``, EnvPool's C++ threads for the tasks that it has; ``auto``, ``mujoco``
            where it can and ``gymnasium`` elsewhere.
        action_mask: where masks of the actions come from (`rlexp.envs.actions.ActionMask`): ``auto``, the entry
            ``action_mask`` of a Dict observation, if it has one; ``info``, that of ``info``; false, nowhere.
    """

    id: str
    backend: Literal["auto", "gymnasium", "mujoco", "envpool"]
    action_mask: Literal["auto", "info", False]

    @property
    def resolved_backend(self) -> Literal["gymnasium", "mujoco", "envpool"]:
        """The backend that ``auto`` stands for."""
        if self.backend != "auto":
            return self.backend
        return "gymnasium" if self._without_mujoco() else "mujoco"

    def _without_mujoco(self) -> str | None:
        """Why ``mujoco.batch`` cannot simulate this; None where it can."""
        from rlexp.envs.mujoco.tasks import TASKS

        if self.id not in TASKS:
            return f"{self.id} is not one of {', '.join(TASKS)}"
        if self.from_pixels:
            return "env.from_pixels renders images"
        if self.action_mask == "info":
            return "its tasks have no env.action_mask"
        unknown = self.kwargs.keys() - inspect.signature(TASKS[self.id]).parameters.keys()
        if unknown:
            return f"it does not know env.kwargs.{min(unknown)}"
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
        if self.from_pixels:
            yield Problem("backend", "gives no pictures: use env.backend=gymnasium.", "envpool")
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

    def with_workers(self, frames: int, cores: int) -> SimulatorConfig:
        """As `SimulatorConfig` has it, the backend logged as well."""
        if self.backend == "auto":
            reason = self._without_mujoco()
            log.info("env.backend=auto: %s", "mujoco" if reason is None else f"gymnasium, since {reason}")
        return super().with_workers(frames, cores)

    def _workers(self, frames: int, cores: int) -> tuple[int, str]:
        """As `SimulatorConfig` has it; as many threads as there are cores for the backends that have threads."""
        if self.resolved_backend == "gymnasium":
            return super()._workers(frames, cores)
        return min(cores, self.num_envs), "its threads take no time to start"

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulators, divided among no more processes or threads than there are simulators."""
        match self.resolved_backend:
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
        )


class MujocoConfig(EnvConfig):
    """A MuJoCo task of the user's own, or one of ours, with a model that varies from episode to episode.

    Builds `rlexp.envs.mujoco.batch.BatchedMujoco`.

    Attributes:
        task: a `rlexp.envs.mujoco.task.MujocoTask`.
        num_workers: threads that step the simulations; ``auto`` is one per core.
        max_episode_steps: agent steps after which an episode is truncated.
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


class DmControlConfig(SimulatorConfig):
    """A task of dm_control's suite, by Shimmy's Gymnasium interface.

    Attributes:
        domain: the body, such as ``cartpole``.
        task: what it is to do, such as ``swingup``.
    """

    domain: str
    task: str

    @property
    def gymnasium_id(self) -> str:
        """Gymnasium's id of one simulator."""
        from rlexp.envs.dm_control import env_id

        return env_id(self.domain, self.task)

    def problems(self) -> Iterator[Problem]:
        """The suite must have the task, with a time limit: evaluation runs whole episodes."""
        yield from super().problems()
        try:
            from rlexp.envs.dm_control import tasks
        except ImportError as error:
            yield Problem("domain", f"needs more packages: pip install 'rlexp[dm-control]' ({error}).", self.domain)
            return
        if self.domain not in (found := tasks()):
            yield Problem("domain", f"dm_control has no such domain. {did_you_mean(self.domain, found)}", self.domain)
        elif self.task not in found[self.domain]:
            hint = did_you_mean(self.task, found[self.domain])
            yield Problem("task", f"dm_control's {self.domain} has no such task. {hint}", self.task)
        elif self.domain == "lqr" and self.max_episode_steps is None:
            yield Problem("max_episode_steps", "is needed: dm_control's lqr has no time limit.", "null")


class TorchrlConfig(EnvConfig):
    """Any torchrl environment, as `rlexp.envs.torchrl.batched` brings it into form.

    Attributes:
        make: one environment; ``frame_skip`` is handed to it where it is not 1. Where it has a ``num_envs``, each batch
            is made with as many rows as are needed, and ``device: auto`` is where the policy is.
        flatten: one vector of all entries, if none is called ``observation``.
    """

    make: Node
    flatten: bool

    def problems(self) -> Iterator[Problem]:
        """An environment that is told its batch size is told this one."""
        rows = self.make.arguments.get("num_envs", self.num_envs)
        if rows != self.num_envs:
            yield Problem("make.num_envs", f"must be env.num_envs = {self.num_envs}.", str(rows))

    def on(self, device: object) -> TorchrlConfig:
        """With ``device: auto`` resolved."""
        if self.make.arguments.get("device") != "auto":
            return self
        make = self.make.model_copy(update={"arguments": self.make.arguments | {"device": str(device)}})
        return self.model_copy(update={"make": make})

    @property
    def has_own_code(self) -> bool:
        """As `EnvConfig` has it, or the environment's own."""
        return self.make.target.split(".")[0] not in ("torchrl", "rlexp") or super().has_own_code

    def build_base(self, num_envs: int) -> EnvBase:
        """As many copies in a row, or the environment itself where it is a batch already."""
        from rlexp.envs.torchrl import batched

        if "dm_control" in self.make.target.split("."):
            import rlexp.envs.dm_control  # noqa: F401 - makes dm_control work with MuJoCo 4
        arguments = self.on(pick_device("auto")).make.arguments
        rows = num_envs if "num_envs" in arguments else self.num_envs
        if "num_envs" in arguments:
            arguments = arguments | {"num_envs": num_envs}
        make = self.make.model_copy(update={"arguments": arguments})
        skip = {} if self.frame_skip == 1 else {"frame_skip": int(self.frame_skip)}
        return batched(lambda: build_at("env.make", lambda: make.build(**skip)), num_envs, rows, flatten=self.flatten)
