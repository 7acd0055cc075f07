"""Settings of Atari games."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from rlexp.config import Count, Fraction, Problem, did_you_mean
from rlexp.envs.config.simulators import BatchedConfig, PixelsConfig

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

Backend = Literal["gymnasium", "envpool"]

log = logging.getLogger(__name__)


class AtariConfig(BatchedConfig):
    """An Atari game with the field's preprocessing (Mnih et al. 2015; Machado et al. 2018).

    Builds `rlexp.envs.gymnasium.batched.BatchedGymEnv` over `rlexp.envs.atari.make`, or
    `rlexp.envs.envpool.BatchedAtariEnvPool`.

    Attributes:
        game: the name of its ROM, such as ``breakout`` and ``space_invaders``.
        backend: what steps the games: ``gymnasium``, ale-py; ``envpool``, EnvPool's C++ threads; ``auto``, ``envpool``
            where it is installed.
        max_episode_steps: agent steps after which a game is truncated.
        pixels: what is seen.
        noop_max: a game begins after at most this many no-op frames.
        fire_reset: whether FIRE begins a game and each life, where the game has that button.
        episodic_life: whether an episode ends with each life for what learns from it (`rlexp.envs.gymnasium.lives`).
        repeat_action_probability: probability that a frame repeats the action of the one before: sticky actions.
    """

    game: str
    backend: Literal["auto", "gymnasium", "envpool"]
    max_episode_steps: Count
    pixels: PixelsConfig
    noop_max: Count
    fire_reset: bool
    episodic_life: bool
    repeat_action_probability: Fraction

    @property
    def resolved_backend(self) -> Backend:
        """The backend that ``auto`` stands for."""
        if self.backend != "auto":
            return self.backend
        return "gymnasium" if importlib.util.find_spec("envpool") is None else "envpool"

    @property
    def has_threads(self) -> bool:
        """EnvPool has."""
        return self.resolved_backend == "envpool"

    @property
    def gymnasium_id(self) -> str:
        """The id of one game on ale-py."""
        return "rlexp.envs.atari:Atari-v0"

    def rendering(self) -> AtariConfig:
        """As `BatchedConfig` has it: ale-py alone draws."""
        return self.model_copy(update={"backend": "gymnasium"})

    def problems(self) -> Iterator[Problem]:
        """The game must be there."""
        yield from super().problems()
        backend = self.resolved_backend
        try:
            if backend == "envpool":
                from rlexp.envs.envpool import games
            else:
                from rlexp.envs.atari import games
            names = games()
        except ImportError as error:
            extra = "envpool" if backend == "envpool" else "atari"
            yield Problem("backend", f"needs more packages: pip install 'rlexp[{extra}]' ({error}).", self.backend)
            return
        if self.game not in names:
            yield Problem("game", f"there is no such game. {did_you_mean(self.game, names)}", self.game)

    def with_workers(self, frames: int, cores: int) -> BatchedConfig:
        """As `BatchedConfig` has it, the backend logged as well."""
        if self.backend == "auto":
            log.info("env.backend=auto: %s", self.resolved_backend)
        return super().with_workers(frames, cores)

    def build_base(self, num_envs: int) -> EnvBase:
        """The games, divided among no more processes or threads than there are games."""
        workers = self._share(num_envs)
        alike: dict[str, Any] = {
            "frame_skip": self.frame_skip,
            "noop_max": self.noop_max,
            "repeat_action_probability": self.repeat_action_probability,
        }
        own: dict[str, Any] = {
            "size": self.pixels.size,
            "stack": self.pixels.stack,
            "fire_reset": self.fire_reset,
            "episodic_life": self.episodic_life,
        }
        if self.resolved_backend == "envpool":
            from rlexp.envs.envpool import BatchedAtariEnvPool

            alike["max_episode_steps"] = int(self.max_episode_steps)
            return BatchedAtariEnvPool(self.game, num_envs=num_envs, num_threads=workers, kwargs=alike, **own)
        from rlexp.envs.gymnasium.batched import BatchedGymEnv

        kwargs = {"game": self.game, "time_limit": self.max_episode_steps} | alike | own
        return BatchedGymEnv(self.gymnasium_id, num_envs=num_envs, num_workers=workers, kwargs=kwargs)
