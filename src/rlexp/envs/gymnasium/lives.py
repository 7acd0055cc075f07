"""Games of several lives: an episode is a whole game, and ends with each life for learning alone. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium

if TYPE_CHECKING:
    from tensordict import TensorDictBase

Env: TypeAlias = "gymnasium.Env[Any, Any]"

END_OF_LIFE = "end_of_life"
"""The flag of a step that lost a life and did not end the game: an entry of a batch, and of ``info``."""


class Lives(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells when a life is lost, and begins the next one with the button that the game waits for.

    Args:
        env: a game on the Arcade Learning Environment.
        fire: the action that begins a life, for one more step, whose reward counts; None is none.
        episodic: whether learning ends an episode with each life (`has_lives`).
    """

    def __init__(self, env: Env, fire: int | None, *, episodic: bool) -> None:
        super().__init__(env)
        self.episodic = episodic
        self._fire, self._lives = fire, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives = self.unwrapped.ale.lives()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and begin the next life where one was lost."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives = self.unwrapped.ale.lives()
        lost = 0 < lives < self._lives and not (terminated or truncated)
        if lost and self._fire is not None:
            observation, more, terminated, truncated, info = self.env.step(self._fire)
            reward, lives = float(reward) + float(more), self.unwrapped.ale.lives()
        self._lives = lives
        return observation, float(reward), terminated, truncated, info | {END_OF_LIFE: lost}


def has_lives(env: Env) -> bool:
    """Whether an environment tells when a life is lost, by a `Lives` somewhere around it."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, Lives):
            return env.episodic
        env = env.env
    return False


def end_lives(batch: TensorDictBase) -> None:
    """Mark the steps of a batch that lost a life as the last of an episode, in place, for the learner."""
    after = batch["next"]
    if (lost := after.get(END_OF_LIFE, None)) is not None:
        for key in ("done", "terminated"):
            after[key] = after[key] | lost
