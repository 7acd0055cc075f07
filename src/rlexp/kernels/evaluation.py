"""Evaluation episodes on arrays. Reference: torchrl's ``step_and_maybe_reset`` with the deterministic actor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TransformedEnv

from rlexp.envs.arrays import ArrayEnv
from rlexp.kernels.acting import Array, acting
from rlexp.kernels.rollout import ArrayTransforms

Steps: TypeAlias = Callable[[], Iterator[tuple[Array, Array]]]
"""Starts episodes in every environment, and yields rewards and ends of each step, each ``[num_envs]``."""


def array_steps(env: TransformedEnv, actor: TensorDictModuleBase) -> Steps:
    """Endless steps from a reset on: rewards and ends, each ``[num_envs]``.

    Raises:
        UnsupportedError: the environment, a transform or the actor needs torchrl's own loop.
    """
    transforms = ArrayTransforms(env)
    simulators: ArrayEnv = env.base_env
    arrays, (width,) = simulators.arrays, env.batch_size
    act, transform = acting(actor, width, transforms.entries, deterministic=True), transforms.observation()

    def steps() -> Iterator[tuple[Array, Array]]:
        act.begin(0)
        simulators.reset_arrays(range(width))
        act.restart(np.arange(width))
        while True:
            simulators.set_actions(act(transform(arrays.observation), arrays.action_mask))
            simulators.step_arrays()
            ended = arrays.terminated | arrays.truncated
            yield arrays.reward, ended
            finished = np.flatnonzero(ended)
            simulators.reset_arrays(finished.tolist())
            act.restart(finished)

    return steps
