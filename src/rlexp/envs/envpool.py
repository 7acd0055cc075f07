"""EnvPool's C++ simulators as one torchrl environment; needs the extra ``rlexp[envpool]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
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
        super().__init__(env_id, num_envs, self._pool.observation_space, action)
        self._all = np.arange(num_envs, dtype=np.int32)

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at the next reset of all of them."""
        # EnvPool takes a seed with its construction alone, and no more than 31 bits of it.
        self._seeds = [int(seed) % 2**31 for seed in seeds] + [0] * (len(self._all) - len(seeds))

    def step_arrays(self) -> None:
        """Step every simulator by ``arrays.action``; a final observation stays until the reset."""
        arrays, going_on = self.arrays, self._all
        action = arrays.action.astype(self._action_dtype)
        arrays.reward[:] = 0
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self._pool.step(action[going_on], going_on)
            ids = info["env_id"]
            arrays.observation[ids] = observation
            arrays.reward[ids] += reward
            arrays.terminated[ids], arrays.truncated[ids] = terminated, truncated
            going_on = ids[~(terminated | truncated)]
            if not len(going_on):
                break

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
        self.arrays.terminated[ids] = self.arrays.truncated[ids] = False

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End the threads."""
        self._pool.close()
        super().close(raise_if_closed=raise_if_closed)
