"""The lean advantage, loss and perceptron against torchrl's and autograd's, values and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from rlexp import load_config
from rlexp.losses.gradients import AutogradGradient, WrittenOutGradient, gradient_of
from rlexp.losses.ppo import GeneralizedAdvantage, LeanClipPPOLoss
from rlexp.losses.returns import discounted_sums
from rlexp.policies import ActorCritic
from rlexp.policies.perceptron import Perceptron
from rlexp.trainer import flatten

CPU = torch.device("cpu")


def networks(*overrides: str, env: str = "hopper") -> ActorCritic:
    torch.manual_seed(0)
    config = load_config([f"env={env}", "env/transforms=none", *overrides])
    built = config.policy.build(config.env.build(1), CPU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def batch_of(built: ActorCritic, *size: int, features: int = 11, actions: int = 3) -> TensorDict:
    torch.manual_seed(1)
    observation, following = torch.randn(*size, features), torch.randn(*size, features)
    terminated, truncated = torch.rand(*size, 1) < 0.1, torch.rand(*size, 1) < 0.1
    done = terminated | truncated
    # Where nothing ends, a step begins where the one before it led.
    following[..., :-1, :] = torch.where(done[..., :-1, :], following[..., :-1, :], observation[..., 1:, :])
    after = {"observation": following, "reward": torch.randn(*size, 1), "done": done, "terminated": terminated}
    action = torch.rand(*size, actions) * 2 - 1
    action[..., 0, :] = 1  # on the bound, where the squashing has no inverse
    batch = TensorDict({"observation": observation, "action": action, "next": after}, size)
    with torch.no_grad():
        log_prob = built.actor.get_dist(batch.select("observation")).log_prob(action)
    return batch.set("action_log_prob", log_prob + 0.2 * torch.randn(size))


@pytest.mark.parametrize("length", [1, 2, 3, 64, 100])
def test_scan_is_the_recursion(length: int) -> None:
    x, discount = torch.randn(3, length, dtype=torch.float64), torch.rand(3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    following = torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(length)):
        expected[:, t] = following = x[:, t] + discount[:, t] * following
    torch.testing.assert_close(discounted_sums(x, discount), expected)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("size", [(1, 500), (16, 64), (5, 1)])
def test_advantage_equals_torchrls(size: tuple[int, int], average: bool) -> None:
    built = networks()
    batch = batch_of(built, *size)
    expected = GAE(gamma=0.99, lmbda=0.95, value_network=built.critic, average_gae=average)(batch.clone())
    GeneralizedAdvantage(built.critic, 0.99, 0.95, average=average)(batch)
    for key in ("advantage", "value_target", "state_value"):
        if key == "advantage" and average and batch.numel() < 10:
            continue  # a few samples' deviation magnifies rounding
        torch.testing.assert_close(batch[key], expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], {}),
        ([], {"normalize_advantage": True, "loss_critic_type": "l2", "clip_epsilon": 0.1}),
        (["policy.state_independent_scale=false"], {"loss_critic_type": "l1", "critic_coeff": 0.3}),
        (["policy.num_cells=[32]", "policy.activation_class=ReLU"], {}),
        (["policy.activation_class=ELU"], {}),
    ],
    ids=["default", "normalized", "state_dependent", "relu", "elu"],
)
@pytest.mark.parametrize("bonus", [False, True])
def test_loss_and_gradients_equal_torchrls(overrides: list[str], options: dict[str, Any], bonus: bool) -> None:
    built = networks(*overrides)
    compare(built, batch_of(built, 4, 64), {"entropy_bonus": bonus, "entropy_coeff": 0.01 * bonus, **options})


@pytest.mark.parametrize("bonus", [False, True])
def test_loss_asks_an_actor_it_does_not_know_for_its_distribution(bonus: bool) -> None:
    critic = networks().critic
    actor = ProbabilisticActor(
        TensorDictModule(_Head(), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    built = ActorCritic(actor, critic)
    compare(built, batch_of(built, 4, 64), {"entropy_bonus": bonus, "entropy_coeff": 0.01 * bonus})


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(11, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loc, scale = self.linear(x).chunk(2, -1)
        return loc, scale.exp()


def compare(built: ActorCritic, batch: TensorDict, options: dict[str, Any]) -> None:
    GeneralizedAdvantage(built.critic, 0.99, 0.95, average=False)(batch)
    results = {}
    for name in ("torchrl", "lean"):
        torch.manual_seed(2)  # the entropy is sampled
        flat = batch.reshape(-1).clone()
        module = LeanClipPPOLoss if name == "lean" else partial(ClipPPOLoss, functional=False)
        losses = dict(module(built.actor, built.critic, **options)(flat).items())
        total = sum(value for key, value in losses.items() if key.startswith("loss_"))
        gradients = torch.autograd.grad(total, built.parameters())
        results[name] = ({k: v.detach() for k, v in losses.items()}, gradients)
    (expected, by_torchrl), (lean, ours) = results["torchrl"], results["lean"]
    assert lean.keys() <= expected.keys()
    for key, value in lean.items():
        torch.testing.assert_close(value, expected[key].reshape(value.shape), rtol=1e-4, atol=1e-5, msg=key)
    for a, b in zip(ours, by_torchrl, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


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
    loss = LeanClipPPOLoss(built.actor, built.critic, entropy_bonus=bonus, entropy_coeff=0.01 * bonus, **options)
    batch = batch_of(built, 4, 64)
    GeneralizedAdvantage(built.critic, 0.99, 0.95, average=False)(batch)
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
    assert isinstance(gradient_of(LeanClipPPOLoss(built.actor, built.critic), built), AutogradGradient)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_perceptron_and_its_gradient_are_the_networks(activation: type[nn.Module]) -> None:
    network = nn.Sequential(
        nn.Linear(5, 8), activation(), nn.Sequential(nn.Linear(8, 8), activation()), nn.Linear(8, 2)
    )
    x = torch.randn(7, 5)
    perceptron = Perceptron.of(network)
    assert perceptron
    torch.testing.assert_close(perceptron(x), network(x))
    by_hand = torch.autograd.grad(perceptron(x).square().sum(), list(network.parameters()))
    by_torch = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for a, b in zip(by_hand, by_torch, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_no_plain_perceptron_is_left_alone() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    others = [nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.LayerNorm(2), mixed]
    assert all(Perceptron.of(network) is None for network in others)
