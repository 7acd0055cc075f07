"""The gradient that is written out against autograd's, of the kernel and of torchrl's module."""

from __future__ import annotations

import shutil

import pytest
import torch
from agents import batch_of, minibatch_loss, networks
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator

from rlexp.kernels.critic import WrittenOutCriticGradient
from rlexp.kernels.gradient import WrittenOutGradient
from rlexp.kernels.losses import fast_loss
from rlexp.kernels.mlp import body_and_head
from rlexp.kernels.select import Kernels
from rlexp.kernels.terms import value_function
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.module import AutogradGradient
from rlexp.optim.weights import flatten
from rlexp.policies import ActorCritic


@pytest.mark.parametrize(
    ("policy", "loss"),
    [
        ([], ["loss.normalize_advantage=true", "loss.loss_critic_type=l2"]),
        (["policy.scale_mapping=softplus"], ["loss.loss_critic_type=l1", "loss.critic_coeff=0.3"]),
        (["policy.state_independent_scale=false", "policy.num_cells=[32]", "policy.activation_class=ReLU"], []),
        (["policy.scale_lb=0.99"], ["loss.clip_epsilon=0.05"]),
        (["policy.scale_ub=0.99"], []),
        (["policy.scale_ub=0.7", "policy.scale_mapping=softplus"], []),
        (["policy.scale_ub=0.6", "policy.state_independent_scale=false"], []),
        (["policy=normal"], []),
        (["policy=normal"], ["loss=spo", "loss.epsilon=0.1"]),
        (["policy=normal", "policy.state_independent_scale=false"], ["loss.loss_critic_type=l2"]),
    ],
    ids=[
        *("default", "softplus", "state_dependent_relu", "scale_at_its_bound", "scale_at_its_upper_bound"),
        *(
            "softplus_at_its_upper_bound",
            "state_dependent_at_its_upper_bound",
            "normal",
            "spo",
            "normal_state_dependent",
        ),
    ],
)
@pytest.mark.parametrize("bonus", [False, True])
def test_written_out_gradient_is_autograds(policy: list[str], loss: list[str], bonus: bool) -> None:
    built = networks(*policy)
    weights = flatten(built.parameters())
    config = minibatch_loss(*loss, "loss.entropy_coeff=0.01" if bonus else "loss.entropy_coeff=0")
    reference = config.build(built)
    kernel = fast_loss(reference, built)
    batch = batch_of(built, 4, 64)
    config.build_advantage(built)(batch)
    kernel.prepare(batch)
    results = []
    for gradient, keys in (
        (AutogradGradient(reference, built.parameters()), reference.keys),
        (AutogradGradient(kernel, built.parameters()), kernel.keys),
        (WrittenOutGradient.of(kernel, built), kernel.keys),
    ):
        torch.manual_seed(2)  # the entropy is sampled
        assert weights.grad is not None
        weights.grad.fill_(7)  # what was there before must not matter
        terms = gradient({key: batch[key].flatten(0, 1) for key in keys})
        results.append((terms, weights.grad.clone()))
    (module, expected), *ours = results
    for terms, found in ours:
        assert terms.keys() == ours[0][0].keys()
        for key in terms.keys() & module.keys():
            torch.testing.assert_close(terms[key], module[key], rtol=1e-4, atol=1e-5, msg=key)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("policy", "loss", "reason"),
    [
        (["policy.shared=true"], [], "share layers"),
        (["policy=beta"], [], "followed by a known distribution"),
        (["policy.activation_class=ELU"], [], "not an MLP"),
        (["policy.layer_norm=true"], [], "not an MLP"),
        (["policy=gru"], [], "recurrent"),
        ([], ["loss.clip_value=0.2"], r"loss\.clip_value"),
        ([], ["loss=a2c"], "not PPO's clipped surrogate"),
    ],
)
def test_gradient_of_what_it_does_not_know_is_left_to_autograd(policy: list[str], loss: list[str], reason: str) -> None:
    built = networks(*policy)
    flatten(built.parameters())
    kernel = fast_loss(minibatch_loss(*loss).build(built), built)
    with pytest.raises(UnsupportedError, match=reason):
        WrittenOutGradient.of(kernel, built)
    assert isinstance(Kernels(True).gradient(kernel, built, lambda: False), AutogradGradient)


class Tenfold(ValueOperator):  # type: ignore[misc]
    """A critic that is more than its network."""

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Ten times the network's values."""
        found = super().forward(tensordict)
        return found.set("state_value", 10 * found["state_value"])


def test_a_critic_that_is_more_than_its_network_is_left_to_autograd() -> None:
    plain = networks()
    hooked = networks().critic
    hooked.register_forward_hook(lambda module, inputs, found: found)
    for critic in (Tenfold(plain.critic.module, in_keys=["observation"]), hooked):
        built = ActorCritic(plain.actor, critic)
        flatten(built.parameters())
        kernel = fast_loss(minibatch_loss().build(built), built)
        with pytest.raises(UnsupportedError, match="more than its network"):
            WrittenOutGradient.of(kernel, built)
        with pytest.raises(UnsupportedError, match="more than its network"):
            WrittenOutCriticGradient(critic, "l2")
        batch = {"observation": torch.randn(5, 11)}
        expected = critic(TensorDict(batch, [5]))["state_value"]
        torch.testing.assert_close(value_function(critic)(batch), expected)


@pytest.mark.parametrize("make_param", [True, False])
def test_a_deviation_of_torchrls_own_has_autograds_gradient(make_param: bool) -> None:
    """At its lower bound, where no gradient passes, or fixed."""
    plain = networks("policy=normal")
    body, _ = body_and_head(plain.actor.module[0].module) or (None, None)
    assert body is not None
    head = AddStateIndependentNormalScale(3, scale_mapping="exp", scale_lb=1.5, make_param=make_param)
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(*body, head), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    built = ActorCritic(actor, plain.critic)
    weights = flatten(built.parameters())
    config = minibatch_loss("loss.entropy_coeff=0")
    kernel = fast_loss(config.build(built), built)
    batch = batch_of(built, 4, 64)
    config.build_advantage(built)(batch)
    kernel.prepare(batch)
    found = []
    for gradient in (AutogradGradient(kernel, built.parameters()), WrittenOutGradient.of(kernel, built)):
        assert weights.grad is not None
        weights.grad.zero_()
        gradient({key: batch[key].flatten(0, 1) for key in kernel.keys})
        found.append(weights.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)


def test_without_kernels_the_gradient_is_autograds() -> None:
    built = networks()
    flatten(built.parameters())
    assert isinstance(Kernels(False).gradient(minibatch_loss().build(built), built, lambda: False), AutogradGradient)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_gradient_is_autograds() -> None:
    built = networks("policy=categorical", "policy.num_cells=[8]", env="cartpole")
    weights = flatten(built.parameters())
    loss = fast_loss(minibatch_loss("loss.entropy_coeff=0.01").build(built), built)
    batch = batch_of(built, 2, 16)
    minibatch_loss().build_advantage(built)(batch)
    loss.prepare(batch)
    minibatch = {key: batch[key].flatten(0, 1) for key in loss.keys}
    results = []
    for compiled in (False, True):
        AutogradGradient(loss, built.parameters(), compiled=compiled)(minibatch)
        assert weights.grad is not None
        results.append(weights.grad.clone())
    assert results[0].abs().max() > 1e-3
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("distance", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("activation", ["Tanh", "ReLU"])
def test_critic_that_is_trained_apart_has_autograds_gradient(distance: str, activation: str) -> None:
    torch.manual_seed(0)
    trained = networks("policy=normal", "policy.num_cells=[8,6]", f"policy.activation_class={activation}")
    weights = flatten(list(trained.critic.parameters()))
    minibatch = {"observation": torch.randn(30, 11), "value_target": 2 * torch.randn(30, 1)}
    loss = WrittenOutCriticGradient(trained.critic, distance)(minibatch)
    assert weights.grad is not None
    written_out, distances = weights.grad.clone(), {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
    expected = distances[distance](trained.critic.module(minibatch["observation"]), minibatch["value_target"])
    weights.grad.zero_()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(written_out, weights.grad)
