"""Any torchrl environment as rlexp wants it: a batch, with one observation."""

from __future__ import annotations

from collections.abc import Callable

from torchrl.envs import (
    BraxWrapper,
    CatTensors,
    Compose,
    EnvBase,
    MujocoPlaygroundWrapper,
    RenameTransform,
    SerialEnv,
    TransformedEnv,
    UnsqueezeTransform,
)

from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK


def batched(make: Callable[[], EnvBase], copies: int, width: int) -> EnvBase:
    """``copies`` of an environment in a row, or one that is a batch by itself.

    Several observations that are vectors become one, ``observation``, in alphabetical order; a single one is renamed.

    Args:
        make: makes one environment.
        copies: how many are made of one that is no batch.
        width: what the batch of any other must be, whatever ``copies`` is.

    Returns:
        An environment with batch size ``[copies]`` or ``[width]``.

    Raises:
        ConfigError: it is no environment, a batch of another size, or its entries are not such as rlexp trains on.
    """
    env = make()
    if not isinstance(env, EnvBase):
        raise _wrong(f"gives a {type(env).__name__}, which is no torchrl environment")
    shape = list(env.batch_size)
    if isinstance(env, BraxWrapper | MujocoPlaygroundWrapper) and shape not in ([], [1]):
        raise _wrong(
            f"gives a batch of {type(env).__name__}, which resets all of its rows when the episode of one ends. "
            "Without env.make.batch_size each of env.num_envs copies is reset by itself"
        )
    if shape not in ([], [width]):
        raise ConfigError([Problem("env.num_envs", f"must be the environment's own batch size, {shape}.", str(width))])
    if env.action_key != "action" or env.reward_key != "reward":
        raise _wrong(f"acts by {env.action_key} and is rewarded by {env.reward_key}, not by action and reward")
    if shape:
        return _one_observation(env)
    first = [env]  # made already
    return SerialEnv(copies, lambda: _one_observation(first.pop() if first else make()))


def _one_observation(env: EnvBase) -> EnvBase:
    spec = env.observation_spec_unbatched
    keys = sorted((key for key in spec.keys(True, True) if key != ACTION_MASK), key=str)
    if "observation" in keys:
        return env
    if len(keys) == 1:
        return TransformedEnv(env, RenameTransform(keys, ["observation"]))
    if any(len(spec[key].shape) > 1 or not spec[key].dtype.is_floating_point for key in keys):
        shown = ", ".join(f"{key} {list(spec[key].shape)}" for key in keys)
        raise _wrong(
            f"observes {shown}, which are not all vectors and none is called observation. Name a function of your own "
            "that wraps it in the transforms that make one of them"
        )
    numbers = [key for key in keys if not spec[key].shape]
    as_vectors = [UnsqueezeTransform(-1, in_keys=numbers)] if numbers else []
    return TransformedEnv(env, Compose(*as_vectors, CatTensors(keys, out_key="observation")))


def _wrong(reason: str) -> ConfigError:
    return ConfigError([Problem("env.make", f"{reason}.")])
