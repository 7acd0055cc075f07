"""Gymnasium simulators, stepped together as one torchrl environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from rlexp.config import ConfigError, Problem


class BatchedGymEnv(EnvBase):
    """``num_envs`` copies of a Gymnasium environment with batch size ``[num_envs]``.

    Transitions equal plain Gymnasium's to the bit: the observation that ends an episode is the terminal one, a finished
    simulator is reset (alone) by the reset that follows, and truncation is told from termination.

    Args:
        env_id: Gymnasium's id of an environment with Box observations and actions.
        num_envs: number of copies.
        frame_skip: times each action is repeated; rewards are summed, and the end of an episode ends the repetition.
        kwargs: passed to ``gymnasium.make``.

    Shapes:
        observation ``[num_envs, *observation]`` and reward ``[num_envs, 1]`` in float64 or the simulator's own type;
        action ``[num_envs, *action]``; done, terminated, truncated ``[num_envs, 1]``.

    Raises:
        ConfigError: the environment cannot be made, or a space is not a Box.
    """

    def __init__(self, env_id: str, *, num_envs: int, frame_skip: int = 1, **kwargs: Any) -> None:
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self._repeat = frame_skip  # torchrl would add a transform of its own for an attribute frame_skip
        try:
            self._envs = [gymnasium.make(env_id, **kwargs) for _ in range(num_envs)]
        except Exception as error:
            raise ConfigError([Problem("env.id", f"cannot be made: {error}", env_id)]) from error
        self._seeds: list[int | None] = [None] * num_envs
        space, action_space = self._envs[0].observation_space, self._envs[0].action_space
        for key, found in (("observation", space), ("action", action_space)):
            if not isinstance(found, spaces.Box):
                message = f"its {key} space is {found}; this environment group takes Box spaces."
                raise ConfigError([Problem("env.id", message, env_id)])
        assert isinstance(space, spaces.Box)
        assert isinstance(action_space, spaces.Box)
        self._observation = np.zeros((num_envs, *space.shape), dtype=space.dtype)
        self._reward = np.zeros((num_envs, 1))
        self._terminated = np.zeros((num_envs, 1), dtype=np.bool_)
        self._truncated = np.zeros((num_envs, 1), dtype=np.bool_)
        self._make_specs(space, action_space)

    def _make_specs(self, space: spaces.Box, action_space: spaces.Box) -> None:
        batch = self.batch_size
        dtype = torch.from_numpy(self._observation).dtype
        self.observation_spec = Composite(observation=Unbounded(shape=(*batch, *space.shape), dtype=dtype), shape=batch)
        low, high = (torch.as_tensor(bound).expand(*batch, *action_space.shape) for bound in
                     (action_space.low, action_space.high))  # fmt: skip
        bounded = bool(np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all())
        self.action_spec = (
            Bounded(low.clone(), high.clone(), shape=low.shape, dtype=low.dtype)
            if bounded
            else Unbounded(shape=low.shape, dtype=low.dtype)
        )
        self.reward_spec = Unbounded(shape=(*batch, 1), dtype=torch.float64)
        flag = Binary(1, shape=(*batch, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch)

    def _set_seed(self, seed: int | None) -> None:
        """Seed each simulator, at its next reset, from an independent stream."""
        if seed is not None:
            self.set_seeds([int(s) for s in np.random.SeedSequence(seed).generate_state(len(self._envs))])

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at its next reset."""
        self._seeds[: len(seeds)] = seeds

    def wrap(self, index: int, wrapper: Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]) -> None:
        """Put a Gymnasium wrapper around simulator ``index``: to watch it, say."""
        self._envs[index] = wrapper(self._envs[index])

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        chosen = range(len(self._envs)) if mask is None else mask.reshape(-1).nonzero().reshape(-1).tolist()
        for i in chosen:
            self._observation[i], _ = self._envs[i].reset(seed=self._seeds[i])
            self._seeds[i] = None
            self._terminated[i] = self._truncated[i] = False
        return self._tensordict()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict.get("action").numpy(force=True)
        for i, env in enumerate(self._envs):
            self._reward[i], self._terminated[i], self._truncated[i] = self._step_one(i, env, actions[i])
        return self._tensordict().set("reward", torch.from_numpy(self._reward.copy()))

    def _step_one(self, i: int, env: gymnasium.Env[Any, Any], action: npt.NDArray[Any]) -> tuple[float, bool, bool]:
        total = 0.0
        for _ in range(self._repeat):
            self._observation[i], reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return total, terminated, truncated

    def _tensordict(self) -> TensorDict:
        terminated = torch.from_numpy(self._terminated.copy())
        truncated = torch.from_numpy(self._truncated.copy())
        return TensorDict(
            {
                "observation": torch.from_numpy(self._observation.copy()),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
            batch_size=self.batch_size,
        )

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close every simulator."""
        for env in self._envs:
            env.close()
        super().close(raise_if_closed=raise_if_closed)
