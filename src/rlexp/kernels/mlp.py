"""Plain perceptrons, taken apart for the loops whose cost is calls and not arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}
# From the derivative by a nonlinearity's output, and that output, to the derivative by its input.
_SLOPES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.Tanh: torch.ops.aten.tanh_backward,
    nn.ReLU: lambda by_output, output: torch.ops.aten.threshold_backward(by_output, output, 0),
}


@dataclass(frozen=True)
class MLPLayers:
    """Linear layers with one kind of nonlinearity between them.

    Attributes:
        layers: in order; the very modules of the network.
        activation: ``nn.Tanh`` or ``nn.ReLU``.
    """

    layers: list[nn.Linear]
    activation: type[nn.Module]

    @classmethod
    def of(cls, network: nn.Module) -> MLPLayers | None:
        """``network`` taken apart, or None where it is something else."""
        leaves = _leaves(network)
        layers, between = leaves[::2], leaves[1::2]
        linear = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        kinds = {type(module) for module in between}
        if not linear or len(leaves) % 2 == 0 or len(kinds) != 1 or not kinds <= _ACTIVATIONS.keys():
            return None
        weights = [id(p) for layer in layers for p in layer.parameters()]
        if any(map(hooked, leaves)) or len(set(weights)) < 2 * len(layers):  # some are there twice
            return None
        return cls(layers, kinds.pop())  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output ``[n, out]`` for ``x`` ``[n, in]``, differentiable by its parameters, not by ``x``.

        One node of the graph instead of two a layer: at this size autograd's bookkeeping costs more than the products.
        """
        out: Tensor = _Function.apply(x, self.activation, *self.parameters)  # type: ignore[no-untyped-call]
        return out

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias of each layer."""
        return [cast("nn.Parameter", p) for layer in self.layers for p in (layer.weight, layer.bias)]

    @property
    def trained(self) -> bool:
        """Whether every weight is: none of them was frozen."""
        return all(p.requires_grad for p in self.parameters)

    def inference(self) -> Callable[[Tensor], Tensor]:
        """The same as a function without a graph; what an optimizer writes into the weights is seen at once."""
        parameters = [p.detach() for p in self.parameters]
        return lambda x: _forward(x, self.activation, parameters)[0]


def body_and_head(network: nn.Module) -> tuple[nn.Sequential, nn.Module] | None:
    """A sequence of modules as all but the last of them, and the last; None where it is something else."""
    if not _is_sequence(network):
        return None
    *body, head = network  # not its children(), which are each there once
    return nn.Sequential(*body), head


def _leaves(network: nn.Module) -> list[nn.Module]:
    """The modules that ``network`` calls one after another; what is no plain sequence of others counts as one."""
    return [leaf for module in network for leaf in _leaves(module)] if _is_sequence(network) else [network]


def _is_sequence(network: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it only calls its modules one after another: no forward of a subclass, and no hooks."""
    return type(network) in (nn.Sequential, MLP) and not hooked(network)


def hooked(module: nn.Module) -> bool:
    """Whether a call of it does more than its forward, as with ``torch.nn.utils.spectral_norm``."""
    before = {hook for hook in module._forward_pre_hooks.values() if getattr(hook, "__name__", "") != _WARNS}
    return bool(module._forward_hooks or before or module._backward_hooks or module._backward_pre_hooks)


_WARNS = "_updater_check_forward_prehook"  # which torchrl's losses have, and which changes nothing


class MLPGradient:
    """A perceptron and its gradient outside of autograd, at the cost of the products.

    Args:
        perceptron: its weights must stay where they are in memory, and so must their ``grad``.
    """

    def __init__(self, perceptron: MLPLayers) -> None:
        parameters = perceptron.parameters
        self._parameters = [p.detach() for p in parameters]
        self._grads = [cast("Tensor", p.grad) for p in parameters]
        self._activation = perceptron.activation

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output ``[n, out]`` for ``x`` ``[n, in]``, and what `backward` needs: the input of every layer."""
        return _forward(x, self._activation, self._parameters)

    def backward(self, inputs: list[Tensor], by_output: Tensor) -> None:
        """Overwrite the gradient of every weight, from the derivative by the output ``[n, out]``."""
        _backward(inputs, by_output, self._activation, self._parameters, self._grads)


class MLPTangents:
    """Products with the Jacobian of a perceptron by its weights, and with its transpose.

    Args:
        perceptron: whose weights are read at each call.
    """

    def __init__(self, perceptron: MLPLayers) -> None:
        self._parameters = [p.detach() for p in perceptron.parameters]
        self._activation = perceptron.activation

    def hidden(self, x: Tensor) -> list[Tensor]:
        """The input of every layer for ``x`` ``[n, in]``."""
        return _forward(x, self._activation, self._parameters)[1]

    def forward(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
        """How the output ``[n, out]`` changes with the weights: the Jacobian times ``tangents``, one a parameter."""
        by_input: Tensor | None = None
        for i, layer_input in enumerate(inputs):
            change = torch.addmm(tangents[2 * i + 1], layer_input, tangents[2 * i].t())
            if by_input is not None:
                change += by_input @ self._parameters[2 * i].t()
            if i + 1 == len(inputs):
                return change
            by_input = _SLOPES[self._activation](change, inputs[i + 1])
        raise AssertionError("a perceptron has layers")

    def backward(self, inputs: Sequence[Tensor], by_output: Tensor) -> list[Tensor]:
        """The transposed Jacobian times the derivative by the output ``[n, out]``, one tensor a parameter."""
        grads = [torch.empty_like(parameter) for parameter in self._parameters]
        _backward(inputs, by_output, self._activation, self._parameters, grads)
        return grads


def _forward(x: Tensor, activation: type[nn.Module], parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    inputs, activate = [x], _ACTIVATIONS[activation]
    for i in range(0, len(parameters) - 2, 2):
        inputs.append(activate(torch.addmm(parameters[i + 1], inputs[-1], parameters[i].t())))
    return torch.addmm(parameters[-1], inputs[-1], parameters[-2].t()), inputs


def _backward(
    inputs: Sequence[Tensor],
    by_output: Tensor,
    activation: type[nn.Module],
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> None:
    """Write the derivatives by ``parameters``, a weight and a bias a layer, into ``grads``."""
    by_output = by_output.to(inputs[0].dtype)  # of rewards in float64, it is float64
    for i in reversed(range(len(inputs))):
        torch.mm(by_output.t(), inputs[i], out=grads[2 * i])
        torch.sum(by_output, 0, out=grads[2 * i + 1])
        if i:
            by_output = _SLOPES[activation](by_output @ parameters[2 * i], inputs[i])


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: type[nn.Module], *parameters: Tensor) -> Tensor:
        out, inputs = _forward(x, activation, parameters)
        ctx.save_for_backward(*inputs, *parameters)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 3
        inputs, parameters = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        grads = [torch.empty_like(parameter) for parameter in parameters]
        _backward(inputs, grad_outputs[0], ctx.activation, parameters, grads)
        return None, None, *grads
