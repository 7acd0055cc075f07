"""Action masks as a torchrl environment has them: the entry ``action_mask``."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, MultiCategorical
from torchrl.envs import ActionMask, EnvBase

from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK
from rlexp.envs.errors import SimulatorError


class CheckedActionMask(ActionMask):
    """``torchrl.envs.ActionMask``, which keeps random actions to the allowed ones, with a check of the masks.

    Args:
        sizes: values of each choice of an action.

    Raises:
        SimulatorError: from a step or reset, a mask allows none of the values of a choice, and the episode goes on.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        mask: Tensor = next_tensordict[ACTION_MASK]
        allowed = torch.stack([part.any(-1) for part in mask.split(self.sizes, -1)], -1).all(-1, keepdim=True)
        if not (allowed | next_tensordict["done"]).all():
            raise SimulatorError(f"an {ACTION_MASK} allows none of the values of an action, and the episode goes on.")
        self.action_spec.update_mask(mask | ~allowed)  # where an episode ended there is nothing to choose
        return next_tensordict


def masks_of(env: EnvBase) -> list[CheckedActionMask]:
    """The transform of an environment that gives masks; none for any other.

    Raises:
        ConfigError: they are not masks of its actions.
    """
    mask, action = env.observation_spec_unbatched.get(ACTION_MASK, None), env.action_spec_unbatched
    if mask is None:
        return []
    sizes: list[int] = []
    if isinstance(action, Categorical):
        sizes = action.nvec.flatten().tolist() if isinstance(action, MultiCategorical) else [action.n]
    if mask.dtype is not torch.bool or mask.shape != (sum(sizes),):
        message = (
            f"observes an {ACTION_MASK}, {mask.dtype} {list(mask.shape)}, that is no bool flag for each value of its "
            f"actions, a {type(action).__name__} of shape {list(action.shape)}: rename or exclude it by a transform."
        )
        raise ConfigError([Problem("env.make", message)])
    return [CheckedActionMask(sizes)]
