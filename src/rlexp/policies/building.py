"""Actors over networks, and what their layers start with."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import TYPE_CHECKING

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn.parameter import is_lazy
from torchrl.modules import ProbabilisticActor

from rlexp.config import ConfigError, Problem
from rlexp.envs.actions import ACTION_MASK
from rlexp.policies.heads import Head, MaskedLogits

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase


def probabilistic_actor(
    module: TensorDictModuleBase, head: Head, env: EnvBase, device: torch.device
) -> ProbabilisticActor:
    """The actor over a network that writes the parameters of ``head``'s distribution."""
    spec = env.action_spec_unbatched.to(device)
    if env.observation_spec_unbatched.get(ACTION_MASK, None) is not None:
        masked = TensorDictModule(MaskedLogits(spec).to(device), in_keys=["logits", ACTION_MASK], out_keys=["logits"])
        module = TensorDictSequential(module, masked)
    return ProbabilisticActor(
        module,
        in_keys=head.keys,
        spec=spec,
        distribution_class=head.distribution_class,
        distribution_kwargs=head.distribution_kwargs,
        return_log_prob=True,
    )


def own_network(key: str, built: object) -> nn.Module:
    """What a user's node has built, if it is a network with a size.

    Raises:
        ConfigError: it is none, or some of its parameters get their size from their first input.
    """
    if not isinstance(built, nn.Module):
        raise ConfigError([Problem(key, f"must build a torch.nn.Module, and built {type(built).__name__}.")])
    if lazy := [name for name, parameter in built.named_parameters() if is_lazy(parameter)]:
        message = f"has parameters without a size ({lazy[0]}): give layers the in_features it is called with."
        raise ConfigError([Problem(key, message)])
    return built


def orthogonal_(network: nn.Module, last_gain: float, own: Iterable[nn.Module] = ()) -> None:
    """Orthogonal weights of gain sqrt(2), 1 in a recurrent layer and ``last_gain`` at the end; zero biases.

    Args:
        network: whose layers are initialised.
        last_gain: gain of the last of them.
        own: parts of it that keep the weights they have.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.RNNBase)]
    kept = {module for part in own for module in part.modules()}
    for layer in layers:
        if layer in kept:
            continue
        gain = last_gain if layer is layers[-1] else 1.0 if isinstance(layer, nn.RNNBase) else sqrt(2)
        for name, parameter in layer.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter, gain=gain)
            else:
                nn.init.zeros_(parameter)


def set_bias(network: nn.Module, bias: torch.Tensor) -> None:
    """Set the bias of a network's last linear layer.

    Raises:
        ConfigError: it has none of that size.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1].bias is None or layers[-1].bias.shape != bias.shape:
        message = "needs a network that ends in a linear layer with a bias, or policy.state_independent_scale=true."
        raise ConfigError([Problem("policy.scale_init", message)])
    with torch.no_grad():
        layers[-1].bias.copy_(bias)
