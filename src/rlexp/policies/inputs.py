"""Which entries of an observation a network reads, and through which encoders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torchrl.data import TensorSpec
from torchrl.envs import ObservationNorm, VecNorm, VecNormV2

from rlexp.config import ConfigError, Node, Problem, build_at, did_you_mean
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.entries import OBSERVATION, is_vector
from rlexp.envs.state import is_own
from rlexp.envs.torchrl import entries
from rlexp.policies.encoders import CNN, Encoded, Identity

if TYPE_CHECKING:
    from torchrl.envs import TransformedEnv

Specs: TypeAlias = Mapping[str, TensorSpec]
Encode: TypeAlias = Callable[[torch.Size], nn.Module]


@dataclass(frozen=True)
class Inputs:
    """What a network reads of an observation.

    Attributes:
        keys: its entries.
        shapes: of the entries.
        encoders: one for each entry; empty where a lone entry is read as it is.
        shape: of what the network itself reads: the lone entry's, or ``[features]`` of the encoders.
    """

    keys: list[str]
    shapes: list[torch.Size]
    encoders: list[nn.Module]
    shape: torch.Size

    def reading(self, network: nn.Module) -> nn.Module:
        """A network over the encoders' features as one over the entries."""
        return Encoded(self.encoders, self.shapes, network) if self.encoders else network


def chosen(
    env: TransformedEnv,
    actor_keys: Sequence[str] | None,
    critic_keys: Sequence[str] | None,
    encoded: Collection[str],
    alike: str | None,
) -> tuple[Specs, Specs]:
    """The entries that the actor and the critic read.

    Args:
        env: the environment.
        actor_keys: those named for the actor; None is all.
        critic_keys: those named for the critic; None is all.
        encoded: those that an encoder is named for.
        alike: why both must read the same; None where they need not.

    Raises:
        ConfigError: there is no such entry, or none is named of several that torchrl's environment has.
    """
    there = entries(env)
    names = {"actor": actor_keys, "critic": critic_keys}
    for which, keys in names.items():
        for key in keys or ():
            if key not in there:
                hint = did_you_mean(key, list(there))
                raise ConfigError([Problem(f"policy.{which}_keys", f"the environment has no such entry. {hint}", key)])
    everything = _all_entries(env, there)
    if actor_keys is None and len(everything) > 1 and not isinstance(env.base_env, ArrayEnv):
        shown = ", ".join(f"{key} {list(there[key].shape)}" for key in everything)
        message = (
            f"is needed: the environment observes {shown}, and some may be for the critic alone. Name what the actor "
            f"reads, such as [{everything[0]}], or all, [{','.join(everything)}]; the critic reads policy.critic_keys."
        )
        raise ConfigError([Problem("policy.actor_keys", message, "null")])
    actor, critic = ({key: there[key] for key in (everything if keys is None else keys)} for keys in names.values())
    if alike is not None and list(actor) != list(critic):
        message = f"must be policy.actor_keys, [{','.join(actor)}], with {alike}: the networks read the same."
        raise ConfigError([Problem("policy.critic_keys", message, f"[{','.join(critic)}]")])
    read = [*actor, *critic]
    for key in encoded:
        if key not in read:
            message = f"is no entry that is read. {did_you_mean(key, read)}"
            raise ConfigError([Problem(f"policy.encoders.{key}", message)])
    return actor, critic


def _all_entries(env: TransformedEnv, there: Specs) -> list[str]:
    """What is read where nothing is named: the environment's own entries, or the one that transforms make of them."""
    own = entries(env.base_env)
    # torchrl's environments call what the policy reads by this name; in a Dict it is an entry like others.
    if OBSERVATION in there and (not isinstance(env.base_env, ArrayEnv) or OBSERVATION not in own or len(own) == 1):
        return [OBSERVATION]
    return [key for key in own if key in there] or list(there)


def check_colours(env: TransformedEnv, read: Iterable[str], nodes: Mapping[str, Node], *, by_default: bool) -> None:
    """Refuse images of integers that are floats by now, which convolutions would read without dividing them.

    Args:
        env: the environment.
        read: the entries that are read.
        nodes: the encoders that the config names, by entry.
        by_default: whether convolutions read the images that no encoder is named for.

    Raises:
        ConfigError: there is such an image, and no transform that could have scaled it.
    """
    scales = [t for t in env.transform if isinstance(t, ObservationNorm | VecNorm | VecNormV2) or is_own(t)]
    scaled = {key for transform in scales for key in transform.out_keys}
    for key in read:
        node = nodes.get(key)
        convolved = by_default if node is None else node.target == f"{CNN.__module__}.{CNN.__name__}"
        if convolved and key not in scaled and key in getattr(env.base_env, "integer_images", ()):
            message = (
                f"its convolutions read bytes (uint8), which they divide by 255, or floats near [0, 1], and {key} has "
                "integers of another type: convert them in a gymnasium.ObservationWrapper."
            )
            raise ConfigError([Problem("policy" if node is None else f"policy.encoders.{key}", message)])


def inputs(specs: Specs, nodes: Mapping[str, Node], convolutions: Encode | None) -> Inputs:
    """What reads some entries.

    Args:
        specs: the entries.
        nodes: the encoders that the config names, by entry.
        convolutions: makes an encoder of images that no encoder is named for; None where there is none.

    Raises:
        ConfigError: an encoder does not fit its entry, or an image has none.
    """
    keys, shapes = list(specs), [spec.shape for spec in specs.values()]
    # The trunk of policy=cnn reads an image or a vector as it is, and of a matrix the numbers, by an encoder.
    as_it_is = len(shapes[0]) in (1, 3) or convolutions is None
    if len(keys) == 1 and keys[0] not in nodes and shapes[0] and as_it_is:
        return Inputs(keys, shapes, [], shapes[0])
    encoders = [_encoder(key, spec, nodes.get(key), convolutions) for key, spec in specs.items()]
    features = sum(_features(key, encoder, spec) for encoder, (key, spec) in zip(encoders, specs.items(), strict=True))
    return Inputs(keys, shapes, encoders, torch.Size([features]))


def _encoder(key: str, spec: TensorSpec, node: Node | None, convolutions: Encode | None) -> nn.Module:
    if node is not None:
        own: nn.Module = build_at(f"policy.encoders.{key}", partial(node.build, shape=spec.shape))
        return own
    if len(spec.shape) == 3 and convolutions is not None:
        return convolutions(spec.shape)
    if len(spec.shape) <= 1 or is_vector(spec.shape, floating=spec.dtype.is_floating_point):
        return Identity(spec.shape)
    message = (
        f"is needed: the entry is {spec.dtype}".replace("torch.", "") + f" {list(spec.shape)}, and no vector. Give "
        f"policy=cnn, which reads images, or policy.encoders.{key}._target_=rlexp.policies.encoders.CNN, or leave it "
        "out by policy.actor_keys and policy.critic_keys."
    )
    raise ConfigError([Problem(f"policy.encoders.{key}", message)])


def _features(key: str, encoder: nn.Module, spec: TensorSpec) -> int:
    """How many features an encoder gives."""
    try:
        with torch.no_grad():
            shape = encoder(torch.zeros(2, *spec.shape, dtype=spec.dtype)).shape
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        message = f"cannot read the entry, {list(spec.shape)}: {error}"
        raise ConfigError([Problem(f"policy.encoders.{key}", message)]) from error
    if len(shape) != 2 or shape[0] != 2 or shape[1] < 1:
        message = f"must give features [n, features] of {list(spec.shape)}, and gives {list(shape)} for n = 2."
        raise ConfigError([Problem(f"policy.encoders.{key}", message)])
    return int(shape[1])
