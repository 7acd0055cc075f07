"""Batches of simulators with a plain array interface, as a torchrl environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK, PolicySpace, choices
from rlexp.envs.entries import split
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.lives import END_OF_LIFE
from rlexp.envs.gymnasium.simulators import Arrays, allocate


class ArrayEnv(EnvBase):
    """``num_envs`` simulators with batch size ``[num_envs]`` whose transitions are rows of NumPy arrays.

    A loop that wants no tensordict per step gives its actions to `set_actions`, calls `step_arrays`, reads ``arrays``
    and resets the simulators that are done with `reset_arrays`; torchrl's ``step`` and ``reset`` do just that.

    Args:
        env_id: names the environment in errors.
        num_envs: number of simulators.
        observation_space: Gymnasium's space of one simulator's observation; a Dict holds Boxes alone.
        action_space: Gymnasium's space of one simulator's action, a `policy_space`.
        own_action_space: what the environment itself acts in; None is ``action_space``.
        masked: whether ``arrays`` has action masks.
        lives: whether ``arrays`` tells when a life is lost.

    Attributes:
        bounds: lowest and highest action ``[actions]``, infinite where there is no bound; None for choices.
        choices: values of each choice of an action; empty for real numbers.
        own_action_space: as above.
        masked: as above.
        flags: names and rows of the masks and the lost lives in ``arrays``.
        arrays: rows of the newest transitions.
        timeout: seconds to wait for a process that steps simulators; None waits for ever.
        integer_images: entries whose images are floats here, and integers other than bytes in the simulator.
        first_row: number of the first simulator, which decides the seeds, where these are some rows of a larger batch.

    Shapes:
        observation ``[num_envs, *observation]`` in the simulator's own type, or an entry for each of a Dict's, and
        reward ``[num_envs, 1]`` in float64; action ``[num_envs, actions]``, or in int64 ``[num_envs]`` for one choice
        and ``[num_envs, choices]`` for several, values counted from 0; done, terminated, truncated ``[num_envs, 1]``;
        with masks, action_mask ``[num_envs, values]``, and with lives end_of_life ``[num_envs, 1]``.

    Raises:
        ConfigError: the observation space is no Box or Dict, or the action space no Box, Discrete or MultiDiscrete, or
            a Box of a single action.
    """

    arrays: Arrays
    timeout: float | None = None
    integer_images: frozenset[str] = frozenset()
    first_row = 0

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        own_action_space: spaces.Space[Any] | None = None,
        *,
        masked: bool = False,
        lives: bool = False,
    ) -> None:
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        for key, found, kinds in (
            ("observation", observation_space, (spaces.Box, spaces.Dict)),
            ("action", action_space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)),
        ):
            if not isinstance(found, kinds):
                names = " or ".join(kind.__name__ for kind in kinds)
                message = f"its {key} space is {found}, and {names} is needed."
                raise ConfigError([Problem("env.id", message, env_id)])
        assert isinstance(observation_space, spaces.Box | spaces.Dict)
        assert isinstance(action_space, PolicySpace)
        box = isinstance(action_space, spaces.Box)
        if box and (action_space.low == action_space.high).all():
            message = f"its action space {action_space} has a single action: give MuJoCo's actuators a ctrlrange."
            raise ConfigError([Problem("env.id", message, env_id)])
        self.own_action_space = action_space if own_action_space is None else own_action_space
        self.masked, self._lives = masked, lives
        self.choices = choices(action_space) or []
        self.arrays = allocate(num_envs, observation_space, action_space, masked=masked, lives=lives)
        self._make_specs(observation_space, action_space)
        self.bounds = (action_space.low, action_space.high) if box else None

    def _make_specs(self, space: spaces.Box | spaces.Dict, action_space: PolicySpace) -> None:
        batch = self.batch_size
        entries = {name: torch.from_numpy(rows) for name, rows in split(self.arrays.observation).items()}
        self.observation_spec = Composite(
            {name: Unbounded(shape=rows.shape, dtype=rows.dtype) for name, rows in entries.items()}, shape=batch
        )
        for name, rows in self.flags.items():
            self.observation_spec[name] = Binary(rows.shape[-1], shape=rows.shape, dtype=torch.bool)
        self.action_spec = _action_spec(action_space, batch)
        self.reward_spec = Unbounded(shape=(*batch, 1), dtype=torch.float64)
        flag = Binary(1, shape=(*batch, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch)

    @property
    def flags(self) -> dict[str, npt.NDArray[np.bool_]]:
        """As above."""
        masks = {ACTION_MASK: self.arrays.action_mask} if self.masked else {}
        return masks | ({END_OF_LIFE: self.arrays.end_of_life} if self._lives else {})

    def set_actions(self, action: npt.NDArray[Any]) -> None:
        """Set the actions ``[num_envs, *action]`` of the next step, clipped to the bounds.

        This is the one place where they are clipped. A batch, and its log-probabilities, keep the unclipped actions.

        Raises:
            SimulatorError: a mask does not allow one.
        """
        np.copyto(self.arrays.action, action, casting="same_kind")
        if self.bounds is not None:
            np.maximum(self.arrays.action, self.bounds[0], out=self.arrays.action)
            np.minimum(self.arrays.action, self.bounds[1], out=self.arrays.action)
        if self.masked:
            self._check_masks()

    def _check_masks(self) -> None:
        action = self.arrays.action.reshape(self.batch_size[0], -1)
        values = action + np.cumsum([0, *self.choices[:-1]])
        allowed = np.take_along_axis(self.arrays.action_mask, values, -1).all(-1)
        if not allowed.all():
            i = int(np.argmin(allowed))
            message = f"the action {action[i].tolist()} of simulator {i} is not allowed by its {ACTION_MASK}"
            raise SimulatorError(f"{message}: the policy does not read the mask.")

    def step_arrays(self) -> None:
        """Step every simulator by ``arrays.action``; a final observation stays until the reset."""
        raise NotImplementedError

    def reset_arrays(self, chosen: Sequence[int]) -> None:
        """Reset the chosen simulators and put their first observations in ``arrays``."""
        raise NotImplementedError

    @property
    def at(self) -> tuple[int, str] | None:
        """A count of calls and the simulator that this process waits for now; None where it waits for none."""
        return None

    def check_every_step(self) -> None:
        """Check what the simulators give in every step, where that can be looked at."""

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seed simulator ``i`` with ``seeds[i]`` at its next reset."""
        raise NotImplementedError

    def _set_seed(self, seed: int | None) -> None:
        """Seed each simulator, at its next reset, from an independent stream."""
        if seed is not None:
            end = self.first_row + self.batch_size[0]
            self.set_seeds([int(s) for s in np.random.SeedSequence(seed).generate_state(end)[self.first_row :]])

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        (num_envs,) = self.batch_size
        self.reset_arrays(range(num_envs) if mask is None else mask.reshape(-1).nonzero().reshape(-1).tolist())
        return self._tensordict()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.set_actions(tensordict.get("action").numpy(force=True))
        self.step_arrays()
        return self._tensordict().set("reward", torch.from_numpy(self.arrays.reward[:, None].copy()))

    def _tensordict(self) -> TensorDict:
        terminated = torch.from_numpy(self.arrays.terminated[:, None].copy())
        truncated = torch.from_numpy(self.arrays.truncated[:, None].copy())
        return TensorDict(
            {
                **{name: torch.from_numpy(rows) for name, rows in split(self.arrays.observation).items()},
                **{name: torch.from_numpy(rows.copy()) for name, rows in self.flags.items()},
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
            batch_size=self.batch_size,
        )


def _action_spec(space: PolicySpace, batch: torch.Size) -> TensorSpec:
    if isinstance(space, spaces.Discrete):
        return Categorical(int(space.n), shape=batch)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical(space.nvec.tolist(), shape=(*batch, len(space.nvec)))
    low, high = (torch.as_tensor(bound).expand(*batch, *space.shape) for bound in (space.low, space.high))
    if np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return Bounded(low.clone(), high.clone(), shape=low.shape, dtype=low.dtype)
    return Unbounded(shape=low.shape, dtype=low.dtype)
