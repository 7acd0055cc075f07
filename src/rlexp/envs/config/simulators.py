"""Settings of simulators with Gymnasium's interface."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from rlexp.config import Config, Count, Problem
from rlexp.config.trust import texts_that_name
from rlexp.envs.config.base import EnvConfig

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from torchrl.envs import EnvBase

log = logging.getLogger(__name__)


@cache
def _gymnasiums_own() -> Mapping[str, EnvSpec]:
    """What Gymnasium registers in every process, whatever was registered in this one since."""
    from gymnasium.envs import registration

    present, found = registration.registry, importlib.util.find_spec("gymnasium.envs")
    assert found is not None
    assert found.loader is not None
    registration.registry = {}
    try:
        found.loader.exec_module(importlib.util.module_from_spec(found))  # a second time, into an empty registry
        own: Mapping[str, EnvSpec] = registration.registry
        return own
    finally:
        registration.registry = present


class PixelsConfig(Config):
    """What is seen of a simulator that gives images: the newest ones in grayscale, uint8 ``[stack, size, size]``.

    Attributes:
        size: width and height of an image.
        stack: images seen together.
    """

    size: Count
    stack: Count


class BatchedConfig(EnvConfig):
    """Simulators with Gymnasium's interface, stepped together by processes, or by MuJoCo's or EnvPool's threads.

    Attributes:
        num_workers: processes (the training process included) or threads among which the simulators are divided;
            ``auto`` is what `with_workers` finds, and one until then.
    """

    num_workers: Count | Literal["auto"]

    @property
    def gymnasium_id(self) -> str:
        """Gymnasium's id of one simulator."""
        raise NotImplementedError

    @property
    def has_threads(self) -> bool:
        """Whether the workers are threads."""
        return False

    def rendering(self) -> BatchedConfig:
        """The same, with simulators that can draw an image of themselves."""
        raise NotImplementedError

    def problems(self) -> Iterator[Problem]:
        """No idle workers."""
        if self.num_workers != "auto" and self.num_workers > self.num_envs:
            message = f"is more than there are simulators: env.num_envs is {self.num_envs}."
            yield Problem("num_workers", message, str(self.num_workers))
        if self.num_workers != "auto" and self.num_workers > 1 and not self.known_everywhere():
            yield Problem("num_workers", f"must be 1: {self.unknown_elsewhere()}", str(self.num_workers))

    def with_workers(self, frames: int, cores: int) -> BatchedConfig:
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
        """How many processes or threads step the simulators soonest, and why."""
        from rlexp.envs.gymnasium.worker_count import best_workers

        if self.has_threads:
            return min(cores, self.num_envs), "its threads take no time to start"
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
        return spec is None or spec == _gymnasiums_own().get(spec.id)

    def unknown_elsewhere(self) -> str:
        """Why an environment is not known everywhere, and the remedy."""
        id = self.gymnasium_id
        return (
            f"{id} is registered in this process alone; env.id=my_module:{id} lets others import the module that does."
        )

    def _share(self, num_envs: int) -> int:
        """Workers of so many simulators: no more than those, and one where ``auto`` is still open."""
        return 1 if self.num_workers == "auto" else min(self.num_workers, num_envs)


class SimulatorConfig(BatchedConfig):
    """Any of Gymnasium's environments, stepped by `rlexp.envs.gymnasium.batched.BatchedGymEnv`.

    Attributes:
        max_episode_steps: time limit in Gymnasium steps; None keeps the task's own.
        from_pixels: observe images instead of the simulator's observations: rendered ones, or its own where they are
            images in colour.
        pixels: what is seen of them.
        flatten: one vector of all entries of a Dict observation.
        kwargs: further keyword arguments of ``gymnasium.make``.
    """

    max_episode_steps: Count | None
    from_pixels: bool
    pixels: PixelsConfig
    flatten: bool
    kwargs: dict[str, Any]

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """The keyword arguments that may name a module or a file, such as MuJoCo's ``xml_file``."""
        for path, text in texts_that_name(self.kwargs, "kwargs"):
            yield path, "gymnasium", text

    def problems(self) -> Iterator[Problem]:
        """No statistics of images, beside what `BatchedConfig` asks for."""
        yield from super().problems()
        if self.from_pixels:
            for name, node in self.transforms.items():
                seen = node.arguments.get("in_keys") or ()
                if "Norm" in node.target.rpartition(".")[2] and "observation" in seen:
                    message = "normalises pixels by statistics, which is not supported: give env/transforms=none."
                    yield Problem(f"transforms.{name}", message, node.target)

    def rendering(self) -> SimulatorConfig:
        """As `BatchedConfig` has it."""
        return self.model_copy(update={"kwargs": self.kwargs | {"render_mode": "rgb_array"}})

    def _kwargs(self) -> dict[str, Any]:
        """What ``gymnasium.make`` is given: the user's own, untouched, and the time limit."""
        limit = {} if self.max_episode_steps is None else {"max_episode_steps": int(self.max_episode_steps)}
        return limit | self.kwargs

    def build_base(self, num_envs: int) -> EnvBase:
        """The simulators, shared out over no more processes than there are simulators."""
        return self._batched(num_envs)

    def _batched(self, num_envs: int, action_mask: Literal["auto", "info", False] = False) -> EnvBase:
        from rlexp.envs.gymnasium.batched import BatchedGymEnv

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
