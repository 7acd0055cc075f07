"""Actions for many simulators at once, at the cost of the network's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from rlexp.config import ConfigError, Problem
from rlexp.policies import SquashedGaussian
from rlexp.policies.perceptron import Perceptron

Array = npt.NDArray[Any]

# Up to here BLAS runs on the calling thread; beyond it, it wakes threads of its own, which `threads` does not count.
_SMALL_WEIGHT, _SMALL_PRODUCT = 9_000, 2**18


def acting(actor: TensorDictModuleBase, num_envs: int, *, deterministic: bool = False) -> GaussianActing | ActorActing:
    """The fastest way to act by ``actor`` that is known.

    Raises:
        ConfigError: it reads more than observations.
    """
    if (policy := SquashedGaussian.of(actor)) is not None:
        return GaussianActing(cast("ProbabilisticActor", actor), policy, num_envs, deterministic=deterministic)
    if list(actor.in_keys) != ["observation"]:
        raise needs_sync(f"the policy reads {actor.in_keys} and not observation alone")
    return ActorActing(actor, deterministic=deterministic)


def needs_sync(reason: str) -> ConfigError:
    """The error that sends to torchrl's own collector."""
    remedy = "Use collector=sync, or with several processes collector.inner=sync."
    return ConfigError([Problem("collector", f"cannot collect here: {reason}. {remedy}", "rollout")])


class GaussianActing:
    """Acts by a `SquashedGaussian`: one network forward and a few array operations a step.

    A small network runs in NumPy: eager torch spends three times as long on its calls as on the arithmetic.

    Args:
        actor: the actor, whose network is read afresh at every `begin`.
        policy: its parts.
        num_envs: rows of every observation.
        deterministic: act by loc, without noise.
    """

    def __init__(
        self, actor: ProbabilisticActor, policy: SquashedGaussian, num_envs: int, *, deterministic: bool = False
    ) -> None:
        self._actor = actor
        self._policy = policy
        self._num_envs = num_envs
        self._deterministic = deterministic
        self._middle, self._half_range = policy.middle.numpy(force=True), policy.half_range.numpy(force=True)
        self._limit = np.float32(1 - torch.finfo(torch.float32).resolution)

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps of a network that stays as it is: draws the noise of all of them."""
        self._parameters, self._noise = self._forward(), iter(())
        if not self._deterministic:
            shape = (steps, self._num_envs, *self._policy.middle.shape)
            self._noise = iter(torch.randn(shape).numpy())

    def __call__(self, observation: Array) -> Array:
        """Actions ``[num_envs, *action]`` for observations ``[num_envs, *observation]``."""
        loc, scale = self._parameters(observation)
        u = loc if self._deterministic else loc + scale * next(self._noise)
        squashed = np.tanh(u).clip(-self._limit, self._limit)
        return cast("Array", self._middle + self._half_range * squashed)

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor writes beside its actions, for a batch of observations and actions; in one call of it."""
        network, sampler = self._actor.module
        written = network(batch.select("observation"))
        log_prob = sampler.get_dist(written).log_prob(batch["action"])
        return written.exclude("observation").set(sampler.log_prob_key, log_prob)

    def _forward(self) -> Callable[[Array], tuple[Array, Array]]:
        """The network from array to arrays, by NumPy as far as it is plain and small."""
        network = self._policy.network
        body = numpy_forward(network[:-1], self._num_envs) if isinstance(network, nn.Sequential) else None
        if body is None:
            return torch_forward(network)
        head = cast("nn.Sequential", network)[-1]
        if isinstance(head, AddStateIndependentNormalScale):
            scale = head(torch.zeros_like(self._policy.middle))[1].numpy(force=True)
            return lambda observation: (body(observation), scale)
        mapped = torch_forward(head)
        return lambda observation: mapped(body(observation))


def torch_forward(network: nn.Module) -> Callable[[Array], Any]:
    """``network`` from array to array, or to as many as it returns."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def forward(x: Array) -> Any:
        out = network(torch.from_numpy(x).to(device))
        return out.numpy(force=True) if isinstance(out, Tensor) else tuple(o.numpy(force=True) for o in out)

    return forward


def numpy_forward(network: nn.Module, rows: int) -> Callable[[Array], Array] | None:
    """A small perceptron on float32 ``[rows, features]`` in NumPy, or None where it is something else.

    The parameters are views: what an optimizer writes is seen at once. The result is overwritten by the next call.
    """
    perceptron = Perceptron.of(network)
    if perceptron is None:
        return None
    layers = []
    for layer in perceptron.layers:
        weight, bias = layer.weight.detach(), layer.bias.detach()
        small = weight.numel() <= _SMALL_WEIGHT and weight.numel() * rows <= _SMALL_PRODUCT
        if not small or weight.device.type != "cpu" or weight.dtype != torch.float32:
            return None
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


class ActorActing:
    """Acts by any torchrl actor that reads ``observation``, one call a step.

    Args:
        actor: writes ``action`` and whatever else it writes.
        deterministic: act by the distribution's deterministic sample.
    """

    def __init__(self, actor: TensorDictModuleBase, *, deterministic: bool = False) -> None:
        self._actor = actor
        self._device = next((p.device for p in actor.parameters()), torch.device("cpu"))
        self._exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        self._written: list[TensorDictBase] = []

    def begin(self, steps: int) -> None:
        """Prepare for ``steps`` steps."""
        self._written = []

    def __call__(self, observation: Array) -> Array:
        """Actions ``[num_envs, *action]`` for observations ``[num_envs, *observation]``."""
        tensordict = TensorDict({"observation": torch.from_numpy(observation)}, [len(observation)])
        with set_exploration_type(self._exploration):
            written = self._actor(tensordict.to(self._device))
        self._written.append(written.exclude("observation"))
        return cast("Array", written["action"].numpy(force=True))

    def outputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What the actor wrote beside its actions since `begin`, as the batch ``[num_envs, steps]``."""
        stacked: TensorDictBase = torch.stack(self._written, 1)
        return stacked.exclude("action")
