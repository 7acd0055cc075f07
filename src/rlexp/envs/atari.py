"""Atari games on ale-py, preprocessed; importing this registers them. Needs the extra ``rlexp[atari]``."""

from __future__ import annotations

from functools import cache
from typing import Any

import ale_py
import cv2  # noqa: F401 - AtariPreprocessing needs it, and says so late
import gymnasium
from ale_py.env import AtariEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit

from rlexp.envs.gymnasium.lives import Env, Lives

FIRE = "FIRE"

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # each interface would announce its version


@cache
def games() -> list[str]:
    """The games of ale-py for one player, by the names of their ROMs."""
    gymnasium.register_envs(ale_py)
    specs = [spec for name, spec in gymnasium.registry.items() if name.startswith("ALE/")]
    return sorted({spec.kwargs["game"] for spec in specs})


class GameStart(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Begins a game with a random number of frames without action, and with a frame of FIRE, as EnvPool does.

    The agent observes only what comes after them, and gets none of their rewards.

    Args:
        env: the bare game.
        noop_max: frames without action: from 1 to this, or with FIRE from 0 to one less.
        fire: whether FIRE is pressed.
    """

    def __init__(self, env: Env, noop_max: int, *, fire: bool) -> None:
        super().__init__(env)
        self._noop_max, self._fire = noop_max, fire

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game; the screen is that of the emulator, which the wrapper above reads itself."""
        observation, info = self.env.reset(seed=seed, options=options)
        ale = self.unwrapped.ale
        for _ in range(int(self.np_random.integers(self._noop_max)) + 1 - self._fire):
            ale.act(ale_py.Action.NOOP)
            if ale.game_over():
                ale.reset_game()
        if self._fire:
            ale.act(ale_py.Action.FIRE)
        return observation, info


def make(
    game: str,
    *,
    frame_skip: int = 4,
    size: int = 84,
    stack: int = 4,
    noop_max: int = 30,
    fire_reset: bool = True,
    episodic_life: bool = True,
    repeat_action_probability: float = 0.0,
    time_limit: int = 27_000,
) -> Env:
    """A game with the preprocessing of Mnih et al. (2015), as Machado et al. (2018) describe it.

    Args:
        game: one of `games`.
        frame_skip: frames of one action; what is seen is the maximum over the last two of them.
        size: width and height of an image.
        stack: images seen together.
        noop_max: as in `GameStart`.
        fire_reset: press FIRE when a game or a life begins, where the game has it.
        episodic_life: tell when a life is lost (`Lives`).
        repeat_action_probability: that a frame repeats the action of the frame before.
        time_limit: agent steps after which a game is truncated.

    Shapes:
        observation uint8 ``[stack, size, size]``, the newest image last.
    """
    env: Env = AtariEnv(
        game,
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=repeat_action_probability,
        render_mode="rgb_array",
    )
    actions = env.unwrapped.get_action_meanings()
    fire = actions.index(FIRE) if fire_reset and FIRE in actions else None
    env = GameStart(env, noop_max, fire=fire is not None)
    env = AtariPreprocessing(env, noop_max=0, frame_skip=frame_skip, screen_size=size)
    env = TimeLimit(FrameStackObservation(env, stack), time_limit)
    env = Lives(env, fire, episodic=episodic_life)
    env.metadata = env.metadata | {"render_fps": 60 / frame_skip}
    return env


gymnasium.register("Atari-v0", f"{__name__}:make")
