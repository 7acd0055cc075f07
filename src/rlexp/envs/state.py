"""Everything of an environment that decides its next steps: its simulators, and what transforms keep in attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torchrl.envs import Compose, Transform, TransformedEnv

from rlexp.config import ConfigError, Problem
from rlexp.envs.attributes import own_attributes, set_attributes
from rlexp.envs.raw_observations import PutRaw, TakeRaw
from rlexp.envs.saving import State, saving

_PACKAGES = ("torchrl", "rlexp")
_BASE = {*vars(Transform()), "in_keys", "out_keys", "in_keys_inv", "out_keys_inv"}


def episodes_state(env: TransformedEnv) -> State:
    """The simulators in the middle of their episodes, and the attributes of transforms of the user's own.

    Raises:
        StateUnavailableError: a simulator or a transform holds something that cannot be saved.
    """
    return {"simulators": saving(env.base_env).simulator_state(), "transforms": attributes(env)}


def load_episodes_state(env: TransformedEnv, state: State) -> None:
    """Continue exactly where `episodes_state` was called.

    Raises:
        StateUnavailableError: the state is another environment's.
    """
    saving(env.base_env).load_simulator_state(state["simulators"])
    load_attributes(env, state["transforms"])


def cloned(env: TransformedEnv) -> list[Transform]:
    """Clones of all transforms, to be put into another environment.

    torchrl's share a buffer that has no shape yet, as ``CatFrames`` has before its first observation: the first of them
    to see one would give it, to all others, the shape and not the type.
    """
    clones: list[Transform] = [transform.clone() for transform in env.transform]
    for clone in clones:
        for name, buffer in clone.named_buffers(recurse=False):
            if is_lazy(buffer):
                setattr(clone, name, UninitializedBuffer())
    return clones


def transforms_state(env: TransformedEnv) -> dict[str, Any]:
    """The state of all transforms, without buffers that take their shape from an observation not yet seen."""
    state = _of_config(env).state_dict(keep_vars=True)  # torch cannot detach those without a shape
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in state.items()
        if not is_lazy(value)
    }


def load_transforms_state(env: TransformedEnv, state: Mapping[str, Any]) -> None:
    """Put back what `transforms_state` returned.

    Raises:
        RuntimeError: it is another environment's.
    """
    transforms = _of_config(env)
    lazy = {name: buffer for name, buffer in transforms.named_buffers() if is_lazy(buffer)}
    for name, buffer in lazy.items():
        if name in state:  # of itself torch would make float32 of an image's bytes
            buffer.materialize(state[name].shape, dtype=state[name].dtype)
    missing, unexpected = transforms.load_state_dict(state, strict=False)
    if unexpected or set(missing) - lazy.keys():
        raise RuntimeError(f"unlike names of buffers: {', '.join([*missing, *unexpected])}")


def _of_config(env: TransformedEnv) -> nn.Module:
    """The transforms by their places in the config, which does not name what copies raw observations for a loss."""
    own = [transform for transform in env.transform if not isinstance(transform, TakeRaw | PutRaw)]
    return nn.ModuleDict({"transforms": nn.ModuleList(own)})


def copy_buffers(source: TransformedEnv, target: TransformedEnv) -> None:
    """Give the transforms of the user's own in ``target`` the buffers of those in ``source``."""
    for (_, ours), (_, theirs) in zip(_own(source), _own(target), strict=True):
        load_buffers(theirs, ours.state_dict(keep_vars=True))


def load_buffers(transform: Transform, state: Mapping[str, Any]) -> None:
    """Put saved buffers into a transform of the user's own, such as statistics of observations.

    One of another shape stays as it is: it has a row for each simulator, of which there are others here.
    """
    present = {name: buffer for name, buffer in transform.named_buffers() if not is_lazy(buffer)}
    for name, buffer in present.items():
        saved = state.get(name)
        if isinstance(saved, Tensor) and not is_lazy(saved) and saved.shape == buffer.shape:
            buffer.copy_(saved)


def attributes(env: TransformedEnv) -> dict[str, dict[str, Any]]:
    """The plain attributes of each transform that is neither torchrl's nor ours, by its position.

    Raises:
        StateUnavailableError: one holds something else, which cannot be saved.
    """
    found = {position: own_attributes(transform, _BASE) for position, transform in _own(env)}
    return {position: values for position, values in found.items() if values}


def load_attributes(env: TransformedEnv, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `attributes` returned."""
    for position, transform in _own(env):
        set_attributes(transform, saved.get(position, {}))


def _own(env: TransformedEnv) -> Iterator[tuple[str, Transform]]:
    transforms: Compose = env.transform
    for position, transform in enumerate(transforms):
        if is_own(transform):
            yield str(position), transform


def check_one_process(env: TransformedEnv) -> None:
    """Refuse transforms of the user's own that learn, where several processes would each learn for itself.

    Raises:
        ConfigError: one has buffers, of which evaluation and checkpoint see those of this process.
    """
    for _, transform in _own(env):
        if any(True for _ in transform.buffers()):
            message = (
                f"{type(transform).__name__} has buffers, and what it learns in one process would "
                "reach neither the others nor evaluation and checkpoint. Train in one: collector=sync, without "
                "torchrun. A constant may be an attribute that is no buffer."
            )
            raise ConfigError([Problem("env.transforms", message)])


def is_own(transform: Transform) -> bool:
    """Whether a transform is the user's own."""
    return type(transform).__module__.split(".")[0] not in _PACKAGES
