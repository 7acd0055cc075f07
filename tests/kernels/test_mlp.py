"""A perceptron as one node of the graph against the network that it was taken from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlexp.kernels.mlp import MLPLayers


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
