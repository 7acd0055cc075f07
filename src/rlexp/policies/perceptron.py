"""Plain perceptrons, taken apart for the loops whose cost is calls and not arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}


@dataclass(frozen=True)
class Perceptron:
    """Linear layers with one kind of nonlinearity between them.

    Attributes:
        layers: in order; the very modules of the network.
        activation: ``nn.Tanh`` or ``nn.ReLU``.
    """

    layers: list[nn.Linear]
    activation: type[nn.Module]

    @classmethod
    def of(cls, network: nn.Module) -> Perceptron | None:
        """``network`` taken apart, or None where it is something else."""
        leaves = [module for module in network.modules() if not isinstance(module, nn.Sequential)]
        layers, between = leaves[::2], leaves[1::2]
        linear = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        kinds = {type(module) for module in between}
        if not linear or len(leaves) % 2 == 0 or len(kinds) != 1 or not kinds <= _ACTIVATIONS.keys():
            return None
        return cls(layers, kinds.pop())  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output ``[n, out]`` for ``x`` ``[n, in]``, differentiable by its parameters, not by ``x``.

        One node of the graph instead of two a layer: at this size autograd's bookkeeping costs more than the products.
        """
        parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        out: Tensor = _Forward.apply(x, self.activation, *parameters)  # type: ignore[no-untyped-call]
        return out


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: type[nn.Module], *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        hidden = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden.append(_ACTIVATIONS[activation](torch.addmm(bias, hidden[-1], weight.t())))
        ctx.save_for_backward(*hidden, *weights)
        ctx.activation = activation
        return torch.addmm(biases[-1], hidden[-1], weights[-1].t())

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # type: ignore[attr-defined]
        hidden, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        (grad,) = grad_outputs
        grads: list[Tensor] = []
        for h, weight in zip(reversed(hidden), reversed(weights), strict=True):
            grads += [grad.sum(0), grad.t() @ h]
            if h is not hidden[0]:
                grad = grad @ weight
                if ctx.activation is nn.Tanh:  # type: ignore[attr-defined]
                    grad = torch.ops.aten.tanh_backward(grad, h)
                else:
                    grad = torch.ops.aten.threshold_backward(grad, h, 0)
        return None, None, *reversed(grads)
