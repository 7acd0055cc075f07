"""Any torchrl environment as rlexp wants it: a batch, with named entries of observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import (
    BraxWrapper,
    CatTensors,
    Compose,
    EnvBase,
    MujocoPlaygroundWrapper,
    RenameTransform,
    SerialEnv,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
    VecNorm,
    VecNormV2,
)

from rlexp.config import ConfigError, Problem
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.entries import OBSERVATION, RESERVED
from rlexp.envs.tensors import TensorEnv

_BY_TRANSFORMS = {"action_mask", "episode_reward", "is_init", "recurrent_state", "step_count"}
"""Names that an environment may have, since they mean there what they mean here."""


def batched(make: Callable[[], EnvBase], copies: int, width: int, *, flatten: bool = False) -> EnvBase:
    """``copies`` of an environment in a row, or one that is a batch by itself.

    The entries of observations stay as they are; a nested one is named by its path, ``robot_speed``, and a single one
    ``observation``.

    Args:
        make: makes one environment.
        copies: how many are made of one that is no batch.
        width: what the batch of any other must be, whatever ``copies`` is.
        flatten: make one vector of several entries, in the order of their names, if none is ``observation``.

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
    if (numbers := list(env.reward_spec_unbatched.shape)) != [1]:
        message = f"gives rewards of shape {numbers}, and one number, [1], is needed"
        raise _wrong(f"{message}: torchrl.envs.LineariseRewards makes one of several, in a function that makes it")
    if not (kind := env.reward_spec_unbatched.dtype).is_floating_point:
        raise _wrong(f"gives rewards of type {kind}, and torch.float32 is needed")
    _check_parts(env)
    form = _flat if flatten else _named
    if shape:
        return form(env if isinstance(env, TensorEnv) else _with_tensors_of_each_step(env))
    first = [env]  # made already
    return SerialEnv(copies, lambda: form(first.pop() if first else make()))


def _with_tensors_of_each_step(env: EnvBase) -> EnvBase:
    """The same environment, whose tensors may be buffers that it writes into again at its next step."""
    env._step, env._reset = partial(_copied, env._step), partial(_copied, env._reset)
    return env


def _copied(call: Callable[..., TensorDictBase], *arguments: object, **named: object) -> TensorDictBase:
    return call(*arguments, **named).clone()


def _check_parts(env: EnvBase) -> None:
    """Refuse what an environment may hold, and what would then be left out or evaluated wrongly in silence."""
    layer = env
    while isinstance(layer, TransformedEnv):
        if any(isinstance(part, VecNorm | VecNormV2) for part in _parts_of(layer.transform)):
            message = "has VecNorm among its transforms, whose statistics no evaluation could freeze: leave it out"
            raise _wrong(f"{message}, and use env/transforms=running")
        layer = layer.base_env
    observed = {key for key in env.observation_spec_unbatched.keys(True, True) if isinstance(key, str)}
    if taken := sorted(observed & RESERVED - _BY_TRANSFORMS):
        names = f"{', '.join(taken)}, which {'is a name' if len(taken) == 1 else 'are names'} of rlexp's own"
        raise _wrong(f"observes {names}: rename it by torchrl.envs.RenameTransform in a function that makes it")


def _parts_of(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, Compose):
        for part in transform:
            yield from _parts_of(part)
    else:
        yield transform


def _check_unread(env: EnvBase, renamed: Sequence[str | tuple[str, ...]]) -> None:
    """Refuse to rename what the environment itself steps from."""
    if read := [str(key) for key in renamed if key in env.state_spec.keys(True, True)]:
        message = f"steps from entries of the tensordict that it is given ({', '.join(read)}), which are renamed here"
        raise _wrong(f"{message}: let it keep its state in attributes, or give several entries, and none nested")


def _named(env: EnvBase) -> EnvBase:
    """The same, with entries that have plain names, and a single one that is called ``observation``."""
    keys = sorted(_leaves(env), key=str)
    if len(keys) == 1 and keys != [OBSERVATION]:
        _check_unread(env, keys)
        return TransformedEnv(env, RenameTransform(keys, [OBSERVATION]))
    nested = [key for key in keys if isinstance(key, tuple)]
    if not nested:
        return env
    _check_unread(env, nested)
    return TransformedEnv(env, RenameTransform(nested, ["_".join(key) for key in nested]))


def _flat(env: EnvBase) -> EnvBase:
    """The same, with one vector ``observation``."""
    keys = sorted(_leaves(env), key=str)
    if len(keys) == 1 or OBSERVATION in keys:
        return _named(env)
    spec = env.observation_spec_unbatched
    if any(len(spec[key].shape) > 1 or not spec[key].dtype.is_floating_point for key in keys):
        shown = ", ".join(f"{key} {list(spec[key].shape)}" for key in keys)
        message = f"makes one vector of vectors alone, and the environment observes {shown}: give env.flatten=false."
        raise ConfigError([Problem("env.flatten", message, "true")])
    _check_unread(env, keys)
    numbers = [key for key in keys if not spec[key].shape]
    as_vectors = [UnsqueezeTransform(-1, in_keys=numbers)] if numbers else []
    return TransformedEnv(env, Compose(*as_vectors, CatTensors(keys, out_key=OBSERVATION)))


def _leaves(env: EnvBase) -> list[str | tuple[str, ...]]:
    return [key for key in env.observation_spec_unbatched.keys(True, True) if key not in RESERVED]


def entries(env: EnvBase) -> dict[str, TensorSpec]:
    """What an environment observes of one simulator, by name; step counts and the like are left out."""
    spec = env.observation_spec_unbatched
    return {str(key): spec[key] for key in sorted(_leaves(env), key=str)}


def clipping(env: EnvBase) -> EnvBase:
    """The same environment, which steps by actions clipped to their bounds, as an `ArrayEnv` does by itself.

    A batch, and its log-probabilities, keep the unclipped actions.
    """
    spec = env.action_spec
    if isinstance(spec, Bounded) and not isinstance(env, ArrayEnv):
        # No transform: around the environment it would hide its class and state, among the others move their places.
        env._step = partial(_clipped_step, env._step, spec.space.low, spec.space.high)
    return env


def _clipped_step(
    step: Callable[[TensorDictBase], TensorDictBase], low: Tensor, high: Tensor, tensordict: TensorDictBase
) -> TensorDictBase:
    action = tensordict.get("action")
    return step(tensordict.replace(action=action.clamp(low, high).to(action.dtype)))


def _wrong(reason: str) -> ConfigError:
    return ConfigError([Problem("env.make", f"{reason}.")])
