"""The gradient that is written out against autograd's."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from agents import batch_of, networks
from rlexp.kernels.advantages import FastGAE

from rlexp.kernels.gradient import AutogradGradient, WrittenOutGradient, gradient_of
from rlexp.kernels.losses import FastClipPPO
from rlexp.optim.weights import flatten


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], {"normalize_advantage": True, "loss_critic_type": "l2"}),
        (["policy.scale_mapping=softplus"], {"loss_critic_type": "l1", "critic_coeff": 0.3}),
        (["policy.state_independent_scale=false", "policy.num_cells=[32]", "policy.activation_class=ReLU"], {}),
        (["policy.scale_lb=0.99"], {"clip_epsilon": 0.05}),
        (["policy=normal"], {}),
        (["policy=normal", "policy.state_independent_scale=false"], {"loss_critic_type": "l2"}),
    ],
    ids=["default", "softplus", "state_dependent_relu", "scale_at_its_bound", "normal", "normal_state_dependent"],
)
@pytest.mark.parametrize("bonus", [False, True])
def test_written_out_gradient_is_autograds(overrides: list[str], options: dict[str, Any], bonus: bool) -> None:
    built = networks(*overrides)
    weights = flatten(built.parameters())
    loss = FastClipPPO(built.actor, built.critic, entropy_bonus=bonus, entropy_coeff=0.01 * bonus, **options)
    batch = batch_of(built, 4, 64)
    FastGAE(built.critic, 0.99, 0.95, average=False)(batch)
    loss.prepare(batch)
    minibatch = {key: batch[key].flatten(0, 1) for key in loss.step_keys}
    fast = gradient_of(loss, built)
    assert isinstance(fast, WrittenOutGradient)
    results = []
    for gradient in (AutogradGradient(loss, built.parameters()), fast):
        torch.manual_seed(2)  # the entropy is sampled
        assert weights.grad is not None
        weights.grad.fill_(7)  # what was there before must not matter
        terms = gradient(minibatch)
        results.append((terms, weights.grad.clone()))
    (expected, by_autograd), (terms, written_out) = results
    assert terms.keys() == expected.keys()
    for key, value in terms.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    torch.testing.assert_close(written_out, by_autograd, rtol=1e-3, atol=1e-6)
    assert by_autograd.abs().max() > 1e-3


@pytest.mark.parametrize("overrides", [["policy.shared=true"], ["policy=beta"], ["policy.activation_class=ELU"]])
def test_gradient_of_other_networks_is_left_to_autograd(overrides: list[str]) -> None:
    built = networks(*overrides)
    flatten(built.parameters())
    assert isinstance(gradient_of(FastClipPPO(built.actor, built.critic), built), AutogradGradient)


def test_gradient_of_other_losses_is_left_to_autograd() -> None:
    built = networks()
    flatten(built.parameters())
    assert isinstance(gradient_of(FastClipPPO(built.actor, built.critic, clip_value=0.2), built), AutogradGradient)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_gradient_is_autograds() -> None:
    built = networks("policy=categorical", "policy.num_cells=[8]", env="cartpole")
    weights = flatten(built.parameters())
    loss = FastClipPPO(built.actor, built.critic, entropy_bonus=True, entropy_coeff=0.01)
    minibatch = {
        "observation": torch.randn(32, 4),
        "latent": torch.randint(2, (32,)),
        "latent_log_prob": torch.full((32,), -0.7),
        "advantage": torch.randn(32, 1),
        "value_target": torch.randn(32, 1),
    }
    results = []
    for compiled in (False, True):
        gradient_of(loss, built, lambda compiled=compiled: compiled)(minibatch)  # type: ignore[misc]
        assert weights.grad is not None
        results.append(weights.grad.clone())
    assert results[0].abs().max() > 1e-3
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-6)
