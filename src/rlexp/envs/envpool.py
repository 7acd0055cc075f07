"""EnvPool's C++ simulators as one torchrl environment; needs the extra ``rlexp[envpool]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlexp.config import ConfigError, Problem, build_at, build_nested
from rlexp.envs.arrays import ArrayEnv


class BatchedEnvPool(ArrayEnv):
    """``num_envs`` simulators of EnvPool with batch size ``[num_envs]``.

    EnvPool by itself resets a simulator with the step after an episode's end, a step that does nothing and belongs to
    no episode. Here those that are done are reset at once, alone, so that every step is one of an episode.

    What it cannot do is read or set a simulator's state: a resumed run begins new episodes. Its random streams are its
    own: on the same seed, episodes are others than Gymnasium's.

    Args:
        env_id: EnvPool's id, which for the tasks it has is Gymnasium's.
        num_envs: number of simulators.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        num_threads: threads that step them; how many changes no transition.
        kwargs: passed to ``envpool.make_gymnasium``.
        lives: whether ``arrays`` tells when a life is lost, which a subclass sees to.

    Shapes:
        observation ``[num_envs, *observation]`` in the simulator's own type, reward ``[num_envs, 1]`` in float64;
        action ``[num_envs, *action]`` in float32, or ``[num_envs]`` in int64 for a choice among n; done, terminated,
        truncated ``[num_envs, 1]``.

    Raises:
        ConfigError: the environment cannot be made, or a space is of another kind.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int,
        frame_skip: int = 1,
        num_threads: int = 1,
        kwargs: Mapping[str, Any] | None = None,
        lives: bool = False,
    ) -> None:
        import envpool

        built = build_at("env.kwargs", lambda: build_nested(kwargs or {}))
        self._make: Callable[[list[int]], Any] = lambda seeds: envpool.make_gymnasium(
            env_id, num_envs=num_envs, num_threads=num_threads, seed=seeds, **built
        )
        self._seeds: list[int] | None = None
        self._repeat = frame_skip
        try:
            self._pool = self._make(list(range(num_envs)))
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError([Problem("env.id", f"EnvPool cannot make it: {error}", env_id)]) from error
        if not isinstance(self._pool.observation_space, spaces.Box):
            found = self._pool.observation_space
            message = f"its observation space is {found}, and Box is needed: use env.backend=gymnasium."
            self._pool.close()
            raise ConfigError([Problem("env.backend", message, "envpool")])
        action = self._pool.action_space
        self._action_dtype = action.dtype
        if isinstance(action, spaces.Box):  # float64 there for some tasks, where Gymnasium's are float32
            action = spaces.Box(action.low.astype(np.float32), action.high.astype(np.float32), dtype=np.float32)
        super().__init__(env_id, num_envs, self._pool.observation_space, action, lives=lives)
        self._all = np.arange(num_envs, dtype=np.int32)

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at the next reset of all of them."""
        # EnvPool takes a seed with its construction alone, and no more than 31 bits of it.
        self._seeds = [int(seed) % 2**31 for seed in seeds] + [0] * (len(self._all) - len(seeds))

    def step_arrays(self) -> None:
        """Step every simulator by ``arrays.action``; a final observation stays until the reset."""
        going_on = self._all
        action = self.arrays.action.astype(self._action_dtype)
        self.arrays.reward[:] = 0
        for _ in range(self._repeat):
            going_on = self._step_some(action[going_on], going_on)
            if not len(going_on):
                break

    def _step_some(self, action: npt.NDArray[Any], chosen: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Step the chosen simulators, add up their rewards, and return those of them that go on."""
        arrays = self.arrays
        observation, reward, terminated, truncated, info = self._pool.step(action, chosen)
        ids: npt.NDArray[np.int32] = info["env_id"]
        arrays.observation[ids] = observation
        arrays.reward[ids] += reward
        arrays.terminated[ids], arrays.truncated[ids] = terminated, truncated
        self._note(ids, info)
        going_on: npt.NDArray[np.int32] = ids[~(terminated | truncated)]
        return going_on

    def _note(self, ids: npt.NDArray[np.int32], info: Mapping[str, Any]) -> None:
        """What else is to be known of simulators that were stepped or reset."""

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Reset the chosen simulators and put their first observations in ``arrays``."""
        ids = np.asarray(chosen, np.int32)
        if not len(ids):
            return
        if self._seeds is not None and len(ids) == len(self._all):
            self._pool.close()
            self._pool, self._seeds = self._make(self._seeds), None
        observation, info = self._pool.reset(ids)
        self.arrays.observation[info["env_id"]] = observation
        self._note(info["env_id"], info)
        self.arrays.terminated[ids] = self.arrays.truncated[ids] = False

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End the threads."""
        self._pool.close()
        super().close(raise_if_closed=raise_if_closed)


class BatchedAtariEnvPool(BatchedEnvPool):
    """``num_envs`` Atari games of EnvPool: those of `rlexp.envs.atari.make`, which says what the arguments mean.

    EnvPool's own end of an episode with each life is not used: it would begin the next one with further frames without
    action, whose rewards are lost.

    Args:
        game: one of `games`.
        num_envs: number of games.
        num_threads: threads that step them.
        size, stack: of the images.
        fire_reset, episodic_life: as there.
        kwargs: passed to ``envpool.make_gymnasium``.
    """

    def __init__(
        self,
        game: str,
        *,
        num_envs: int,
        num_threads: int = 1,
        size: int = 84,
        stack: int = 4,
        fire_reset: bool = True,
        episodic_life: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        seen = {"img_height": size, "img_width": size, "stack_num": stack, "use_fire_reset": fire_reset}
        super().__init__(
            atari_id(game),
            num_envs=num_envs,
            num_threads=num_threads,
            kwargs={**(kwargs or {}), **seen},
            lives=episodic_life,
        )
        self._fires = fire_reset and game not in WITHOUT_FIRE
        self._lives_left = np.zeros(num_envs, np.int32)

    def step_arrays(self) -> None:
        """Step every game, and begin the next life with FIRE where one was lost; the reward of both steps counts."""
        before = self._lives_left.copy()
        super().step_arrays()
        arrays, left = self.arrays, self._lives_left
        lost = (left > 0) & (left < before) & ~(arrays.terminated | arrays.truncated)
        if self._fires and lost.any():
            ids = self._all[lost]
            self._step_some(np.full(len(ids), _FIRE, self._action_dtype), ids)
        if arrays.end_of_life.size:
            arrays.end_of_life[:, 0] = lost

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Begin new games."""
        super().reset_arrays(chosen)
        self.arrays.end_of_life[list(chosen)] = False

    def _note(self, ids: npt.NDArray[np.int32], info: Mapping[str, Any]) -> None:
        self._lives_left[ids] = info["lives"]


_FIRE = 1  # its number in every game that has this action and several lives
WITHOUT_FIRE = frozenset({
    *("asterix", "crazy_climber", "freeway", "frogger", "journey_escape", "koolaid", "kung_fu_master", "lost_luggage"),
    *("ms_pacman", "pacman", "skiing", "surround", "tutankham"),
})  # fmt: skip
"""The games of which no action is FIRE."""


def games() -> list[str]:
    """EnvPool's Atari games, by the names of their ROMs."""
    from envpool.atari.registration import atari_game_list

    return list(atari_game_list)


def atari_id(game: str) -> str:
    """EnvPool's id of a game: ``SpaceInvaders-v5``."""
    return "".join(word.capitalize() for word in game.split("_")) + "-v5"
