"""Actions for many simulators at once, on the device. Reference: one call of the actor per step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from rlexp.envs.entries import OBSERVATION
from rlexp.kernels.distributions import Parts
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.policies.recurrent import CARRIED, STATE, RecurrentActor, recurrent_network


class DeviceActing(Protocol):
    """Acts for many simulators, step by step, in tensors that stay where they are."""

    def begin(self) -> None:
        """Start a batch."""

    def __call__(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions ``[num_envs, *action]`` for observations ``[num_envs, *observation]``."""

    def restart(self, chosen: Tensor) -> None:
        """Some simulators begin an episode ``[num_envs, 1]``: their recurrent states are zero."""

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor writes beside its actions, for the batch ``[num_envs, steps]`` since `begin`."""

    def state(self) -> dict[str, Tensor]:
        """What carries over from one batch to the next."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""


def device_acting(
    actor: TensorDictModuleBase, num_envs: int, device: torch.device, entries: Collection[str] = (OBSERVATION,)
) -> DeviceActing:
    """What acts as ``actor`` does.

    Args:
        actor: the actor.
        num_envs: rows of every observation.
        device: where it acts.
        entries: of an observation.

    Raises:
        UnsupportedError: it reads more than these entries and its own recurrent state.
    """
    own = CARRIED if recurrent_network(actor) is not None else []
    if set(actor.in_keys) - {*entries, *own}:
        raise UnsupportedError(f"the policy reads {actor.in_keys} and not {', '.join(entries)} alone")
    parts = Parts.of(actor)
    if parts is not None and not isinstance(parts.network, RecurrentActor):
        return FamilyActing(actor, parts)
    return WholeActing(actor, num_envs, device)


class FamilyActing:
    """Acts by the parts of a feed-forward actor: its network and its family of distributions.

    Args:
        actor: the actor.
        parts: its parts.
    """

    def __init__(self, actor: ProbabilisticActor, parts: Parts) -> None:
        self._sampler = actor.module[1]
        self._network, self._inputs, self._family = parts.network, parts.reading.inputs, parts.family
        self._parameters: list[tuple[Tensor, ...]] = []

    def begin(self) -> None:
        """See `DeviceActing`."""
        self._parameters = []

    def __call__(self, observation: Mapping[str, Tensor]) -> Tensor:
        """See `DeviceActing`."""
        parameters = self._network(*self._inputs(observation))
        self._parameters.append(parameters if isinstance(parameters, tuple) else (parameters,))
        return self._family.sample(*self._parameters[-1])

    def restart(self, chosen: Tensor) -> None:
        """See `DeviceActing`."""

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """See `DeviceActing`; the log-probabilities in one call."""
        columns = (torch.stack(entries, 1) for entries in zip(*self._parameters, strict=True))
        written = TensorDict(
            dict(zip(self._sampler.in_keys, columns, strict=True)), batch.batch_size, device=batch.device
        )
        written[self._sampler.log_prob_key] = self._sampler.get_dist(written).log_prob(batch["action"])
        return written

    def state(self) -> dict[str, Tensor]:
        """See `DeviceActing`."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `DeviceActing`."""


class WholeActing:
    """Acts by the actor itself, one call a step.

    Args:
        actor: reads observations and perhaps its own recurrent state.
        num_envs: rows of every observation.
        device: where it acts.
    """

    def __init__(self, actor: TensorDictModuleBase, num_envs: int, device: torch.device) -> None:
        self._actor, self._num_envs, self._device = actor, num_envs, device
        network = recurrent_network(actor)
        self._recurrent_state: dict[str, Tensor] = {}
        if network is not None:
            self._recurrent_state = {
                STATE: torch.zeros(num_envs, network.state_size, device=device),
                "is_init": torch.ones(num_envs, 1, dtype=torch.bool, device=device),
            }
        self._written: list[TensorDictBase] = []

    def begin(self) -> None:
        """See `DeviceActing`."""
        self._written = []

    def __call__(self, observation: Mapping[str, Tensor]) -> Tensor:
        """See `DeviceActing`."""
        tensordict = TensorDict({**observation, **self._recurrent_state}, [self._num_envs], device=self._device)
        with set_exploration_type(ExplorationType.RANDOM):
            written = self._actor(tensordict).exclude(*observation)
        if self._recurrent_state:
            going_on = torch.zeros_like(self._recurrent_state["is_init"])
            written["next", "is_init"] = going_on
            self._recurrent_state = {STATE: written["next", STATE], "is_init": going_on}
        self._written.append(written)
        action: Tensor = written["action"]
        return action

    def restart(self, chosen: Tensor) -> None:
        """See `DeviceActing`."""
        if self._recurrent_state:  # copies: the batch holds the state of before
            self._recurrent_state = {STATE: self._recurrent_state[STATE].masked_fill(chosen, 0), "is_init": chosen}

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """See `DeviceActing`."""
        stacked: TensorDictBase = torch.stack(self._written, 1)
        return stacked.exclude("action")

    def state(self) -> dict[str, Tensor]:
        """See `DeviceActing`."""
        return {key: value.clone() for key, value in self._recurrent_state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `DeviceActing`."""
        self._recurrent_state = {key: state[key].to(value) for key, value in self._recurrent_state.items()}
