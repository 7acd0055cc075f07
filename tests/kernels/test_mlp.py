"""A perceptron as one node of the graph against the network that it was taken from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from rlexp.kernels.mlp import MLPLayers, body_and_head


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_perceptron_and_its_gradient_are_the_networks(activation: type[nn.Module]) -> None:
    network = nn.Sequential(
        nn.Linear(5, 8), activation(), nn.Sequential(nn.Linear(8, 8), activation()), nn.Linear(8, 2)
    )
    x = torch.randn(7, 5)
    perceptron = MLPLayers.of(network)
    assert perceptron
    torch.testing.assert_close(perceptron(x), network(x))
    by_hand = torch.autograd.grad(perceptron(x).square().sum(), list(network.parameters()))
    by_torch = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(by_hand, by_torch, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_no_plain_perceptron_is_left_alone() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    others = [nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.LayerNorm(2), mixed]
    assert all(MLPLayers.of(network) is None for network in others)


class Skip(nn.Sequential):
    """Does more than its modules."""

    def forward(self, x: Tensor) -> Tensor:
        """Add the input."""
        out: Tensor = x + super().forward(x)  # type: ignore[no-untyped-call]
        return out


def perceptron() -> list[nn.Module]:
    return [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)]


def test_a_forward_of_its_own_or_a_hook_is_not_left_out() -> None:
    """Taken apart it would be another network than the one that is saved."""
    hooked, deep = nn.Sequential(*perceptron()), nn.Sequential(*perceptron())
    hooked.register_forward_hook(lambda module, inputs, out: 2 * out)
    deep[0] = torch.nn.utils.spectral_norm(deep[0])
    for network in (Skip(*perceptron()), nn.Sequential(Skip(*perceptron())), hooked, deep):
        assert MLPLayers.of(network) is None
    assert body_and_head(Skip(*perceptron())) is None
    assert body_and_head(hooked) is None


def test_modules_that_stand_twice_are_called_twice() -> None:
    tanh, linear = nn.Tanh(), nn.Linear(2, 2)
    twice = nn.Sequential(nn.Linear(2, 2), tanh, nn.Linear(2, 2), tanh, nn.Linear(2, 2))
    x = torch.randn(3, 2)
    found = MLPLayers.of(twice)
    assert found is not None
    torch.testing.assert_close(found(x), twice(x))
    assert MLPLayers.of(nn.Sequential(linear, nn.Tanh(), linear)) is None, "each layer's gradient overwrites the other"
    tied = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    assert MLPLayers.of(tied) is None
    parts = body_and_head(nn.Sequential(linear, tanh, linear, tanh))
    assert parts is not None
    assert (list(parts[0]), parts[1]) == ([linear, tanh, linear], tanh)


def test_torchrls_perceptron_is_one() -> None:
    network = MLP(in_features=3, out_features=2, num_cells=[4, 4])
    x, (body, head) = torch.randn(5, 3), body_and_head(network) or (None, None)
    assert body is not None
    assert head is not None
    torch.testing.assert_close(head(body(x)), network(x))
    found = MLPLayers.of(network)
    assert found is not None
    torch.testing.assert_close(found(x), network(x))
