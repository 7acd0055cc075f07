"""Actions for many simulators at once. Reference: one call of ``torchrl.modules.ProbabilisticActor`` per step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from rlexp.distributed import ALONE, Group
from rlexp.envs.actions import ACTION_MASK
from rlexp.envs.entries import OBSERVATION, split
from rlexp.kernels.distributions import Parts
from rlexp.kernels.mlp import MLPLayers, body_and_head
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.machine import at_most_threads, useful_threads
from rlexp.policies.heads import NEVER
from rlexp.policies.recurrent import STATE, RecurrentActor

Array = npt.NDArray[Any]

# Up to here BLAS runs on the calling thread; beyond it, it wakes threads of its own, which `threads` does not count.
_SMALL_WEIGHT, _SMALL_PRODUCT = 9_000, 2**18


def acting(
    actor: TensorDictModuleBase,
    num_envs: int,
    entries: Sequence[str] = (OBSERVATION,),
    *,
    deterministic: bool = False,
    group: Group = ALONE,
) -> Acting:
    """What acts as ``actor`` does, in NumPy as far as its network is plain and small.

    Args:
        actor: the actor.
        num_envs: rows of every observation.
        entries: of an observation.
        deterministic: act without noise.
        group: the learners, each of whom has as many rows; noise is drawn for all of them.

    Raises:
        UnsupportedError: it reads more than observations and action masks, or draws its noise itself, which
            several learners cannot do.
    """
    parts = Parts.of(actor)
    read = list(actor.in_keys) if parts is None else parts.reading.keys
    if not set(read) <= set(entries):
        raise UnsupportedError(f"the policy reads {', '.join(map(str, read))}, and not {', '.join(entries)} alone")
    if parts is not None:
        kind = RecurrentActing if isinstance(parts.network, RecurrentActor) else FamilyActing
        return kind(cast("ProbabilisticActor", actor), parts, num_envs, deterministic=deterministic, group=group)
    if group.size > 1:
        raise UnsupportedError("the actor is not a network followed by a known distribution")
    return ActorActing(actor, deterministic=deterministic)


class Acting:
    """Acts for many simulators, step by step."""

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps of networks that stay as they are; 0: any number, of which nothing is kept."""

    def __call__(self, observation: Array, mask: Array | None = None) -> Array:
        """Actions ``[num_envs, *action]``.

        Args:
            observation: ``[num_envs, *observation]``, or rows of several entries.
            mask: of the actions ``[num_envs, values]``, where the actor reads one.
        """
        raise NotImplementedError

    def restart(self, chosen: Array) -> None:
        """The chosen simulators begin an episode: their recurrent states are zero."""

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor writes beside its actions, for the batch ``[num_envs, steps]`` since `begin`."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What carries over from one batch to the next."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""


class FamilyActing(Acting):
    """Acts by the parts of an actor: one network forward and a few array operations a step.

    A small network runs in NumPy: eager torch spends three times as long on its calls as on the arithmetic.

    Args:
        actor: the actor, whose network is read afresh at every `begin`.
        parts: its parts.
        num_envs: rows of every observation.
        deterministic: act without noise.
        group: the learners, for all of whose rows noise is drawn.
    """

    def __init__(
        self,
        actor: ProbabilisticActor,
        parts: Parts,
        num_envs: int,
        *,
        deterministic: bool = False,
        group: Group = ALONE,
    ) -> None:
        self._group = group
        self._actor, self._network, self._family = actor, parts.network, parts.family
        self._reading, self._masked = parts.reading, parts.masked
        self._flags = None if parts.masked is None else parts.masked.places.numpy(force=True)
        self._num_envs = num_envs
        self._deterministic = deterministic
        self._threads = _useful_threads(parts.network, num_envs)

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps of a network that does not change meanwhile."""
        self._parameters = self._forward()

    def __call__(self, observation: Array, mask: Array | None = None) -> Array:
        """See `Acting`."""
        with at_most_threads(self._threads):  # those that the learner has would slow the simulators
            parameters = self._parameters(*self._reading.arrays(observation))
        if self._flags is not None:
            assert mask is not None
            parameters = (np.where(mask[:, self._flags], parameters[0], np.float32(NEVER)),)
        # Drawn step by step, as the actor itself draws: the same seed gives both the same noise.
        noise = None
        if not self._deterministic:
            noise = self._group.draw(self._family.noise, parameters[0].shape).numpy()
        return self._family.act(parameters, noise)

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor writes beside its actions, for a batch of observations and actions; in one call of it."""
        network, sampler = self._actor.module
        written = network(batch.select(*network.in_keys))
        log_prob = sampler.get_dist(written).log_prob(batch["action"])
        return written.exclude(*network.in_keys).set(sampler.log_prob_key, log_prob)

    def _forward(self) -> Callable[..., tuple[Array, ...]]:
        """The network from array to arrays, without the calls of its modules as far as it is plain."""
        network = self._network
        parts = body_and_head(network)
        body = None if parts is None else mlp_forward(parts[0], self._num_envs)
        if parts is None or body is None:
            return torch_forward(network)
        head = parts[1]
        if isinstance(head, nn.Identity):
            return lambda observation: (body(observation),)
        if isinstance(head, AddStateIndependentNormalScale):
            scale = head(torch.zeros_like(head.state_independent_scale))[1].numpy(force=True)
            return lambda observation: (body(observation), scale)
        mapped = torch_forward(head)
        return lambda observation: mapped(body(observation))


class RecurrentActing(FamilyActing):
    """Acts by the parts of a recurrent actor, and keeps the recurrent state of each simulator.

    Args:
        actor, parts, num_envs, deterministic, group: as in `FamilyActing`.
    """

    def __init__(
        self,
        actor: ProbabilisticActor,
        parts: Parts,
        num_envs: int,
        *,
        deterministic: bool = False,
        group: Group = ALONE,
    ) -> None:
        super().__init__(actor, parts, num_envs, deterministic=deterministic, group=group)
        network = cast("RecurrentActor", parts.network)
        self._device = next(network.parameters()).device
        self._recurrent_state = torch.zeros(num_envs, network.state_size, device=self._device)
        self._is_init = torch.ones(num_envs, 1, dtype=torch.bool, device=self._device)

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps; the recurrent state stays."""
        super().begin(steps)
        self._written: list[tuple[Tensor, ...]] = []
        self._keeps = steps > 0

    def restart(self, chosen: Array) -> None:
        """Reset the recurrent state of the chosen simulators."""
        if not chosen.size:
            return
        rows = torch.from_numpy(chosen).to(self._device)
        # A copy: the batch holds the state of before.
        self._recurrent_state = self._recurrent_state.index_fill(0, rows, 0)
        self._is_init[rows] = True

    def state(self) -> dict[str, Tensor]:
        """The recurrent state ``[num_envs, state_size]``, and which episodes begin ``[num_envs, 1]``."""
        return {STATE: self._recurrent_state.clone(), "is_init": self._is_init.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        self._recurrent_state, self._is_init = (state[key].to(self._device, copy=True) for key in (STATE, "is_init"))

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor wrote since `begin`: parameters, log-probabilities, and the recurrent state at each step."""
        sampler = self._actor.module[1]
        is_init, before, *parameters, after = (torch.stack(entries, 1) for entries in zip(*self._written, strict=True))
        if self._masked is not None:
            parameters = [self._masked(*parameters, batch[ACTION_MASK])]
        written = TensorDict(dict(zip(sampler.in_keys, parameters, strict=True)), batch.batch_size, device=batch.device)
        written[sampler.log_prob_key] = sampler.get_dist(written).log_prob(batch["action"])
        written["is_init"], written[STATE] = is_init, before
        written["next"] = {"is_init": torch.zeros_like(is_init), STATE: after}
        return written

    def _forward(self) -> Callable[..., tuple[Array, ...]]:
        def forward(*observation: Array) -> tuple[Array, ...]:
            before, is_init = self._recurrent_state, self._is_init
            given = (torch.from_numpy(entry).to(self._device) for entry in observation)
            *parameters, self._recurrent_state = self._network(*given, is_init, before)
            self._is_init = torch.zeros_like(is_init)
            if self._keeps:
                self._written.append((is_init, before, *parameters, self._recurrent_state))
            return tuple(parameter.numpy(force=True) for parameter in parameters)

        return forward


def _useful_threads(network: nn.Module, rows: int) -> int | None:
    """How many of torch's threads a forward is worth; None where its weights do not tell, as those of convolutions."""
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return None
    return useful_threads(rows * sum(p.numel() for p in network.parameters()))


def torch_forward(network: nn.Module) -> Callable[..., tuple[Array, ...]]:
    """``network`` from arrays to as many as it returns."""
    held = itertools.chain(network.parameters(), network.buffers())  # a head may have buffers alone
    device = next((tensor.device for tensor in held), torch.device("cpu"))

    def forward(*inputs: Array) -> tuple[Array, ...]:
        out = network(*(torch.from_numpy(x).to(device) for x in inputs))
        return tuple(o.numpy(force=True) for o in ((out,) if isinstance(out, Tensor) else out))

    return forward


def mlp_forward(network: nn.Module, rows: int) -> Callable[[Array], Array] | None:
    """A perceptron on float32 ``[rows, features]``, in NumPy where it is small; None where it is something else.

    The parameters are views: what an optimizer writes is seen at once. The result is overwritten by the next call.
    """
    perceptron = MLPLayers.of(network)
    if perceptron is None:
        return None
    layers = []
    for layer in perceptron.layers:
        weight, bias = layer.weight.detach(), layer.bias.detach()
        small = weight.numel() <= _SMALL_WEIGHT and weight.numel() * rows <= _SMALL_PRODUCT
        if not small or weight.device.type != "cpu" or weight.dtype != torch.float32:
            infer = perceptron.inference()
            return lambda x: infer(torch.from_numpy(x).to(weight.device)).numpy(force=True)
        layers.append((weight.t().numpy(), bias.numpy(), np.empty((rows, layer.out_features), np.float32)))
    activate: Callable[..., Array] = np.tanh if perceptron.activation is nn.Tanh else _relu

    def forward(x: Array) -> Array:
        for weight, bias, out in layers[:-1]:
            np.add(np.matmul(x, weight, out=out), bias, out=out)
            x = activate(out, out=out)
        weight, bias, out = layers[-1]
        np.add(np.matmul(x, weight, out=out), bias, out=out)
        return out

    return forward


def _relu(x: Array, out: Array) -> Array:
    return np.maximum(x, 0, out=out)


class ActorActing(Acting):
    """Acts by any torchrl actor that reads entries of observations alone, one call a step.

    Args:
        actor: writes ``action`` and whatever else it writes.
        deterministic: act by the distribution's deterministic sample.
    """

    def __init__(self, actor: TensorDictModuleBase, *, deterministic: bool = False) -> None:
        self._actor = actor
        self._device = next((p.device for p in actor.parameters()), torch.device("cpu"))
        self._exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        self._written: list[TensorDictBase] = []
        self._keeps = True

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps."""
        self._written, self._keeps = [], steps > 0

    def __call__(self, observation: Array, mask: Array | None = None) -> Array:
        """See `Acting`."""
        entries = {name: torch.from_numpy(rows) for name, rows in split(observation).items()}
        tensordict = TensorDict(entries, [len(observation)])
        with set_exploration_type(self._exploration):
            written = self._actor(tensordict.to(self._device))
        if self._keeps:
            self._written.append(written.exclude(*entries))
        return cast("Array", written["action"].numpy(force=True))

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor wrote beside its actions since `begin`, as the batch ``[num_envs, steps]``."""
        stacked: TensorDictBase = torch.stack(self._written, 1)
        return stacked.exclude("action")
