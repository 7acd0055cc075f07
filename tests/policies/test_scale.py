"""The standard deviation that a Gaussian policy starts with."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import mappings

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.policies import ActorCritic
from rlexp.policies.config import GaussianConfig
from rlexp.policies.heads import both_ways, within

CPU = torch.device("cpu")


def networks(*overrides: str) -> ActorCritic:
    config = load_config(["env=gym", "env.id=Pendulum-v1", "env/transforms=none", "policy.num_cells=[8]", *overrides])
    return config.policy.build(config.env.build(1), CPU)


@pytest.mark.parametrize("mapping", ["exp", "softplus", "biased_softplus_1.0", "relu"])
@pytest.mark.parametrize("independent", ["true", "false"])
@pytest.mark.parametrize("policy", ["normal", "tanh_normal"])
def test_it_is_the_one_asked_for(policy: str, independent: str, mapping: str) -> None:
    built = networks(
        f"policy={policy}", f"policy.scale_mapping={mapping}", "policy.scale_init=0.3", "policy.last_layer_gain=0",
        f"policy.state_independent_scale={independent}",
    )  # fmt: skip
    steps = {"observation": torch.randn(4, 3)}
    scale = built.actor.get_dist_params(TensorDict(steps, [4]))["scale"]
    torch.testing.assert_close(scale, torch.full((4, 1), 0.3), rtol=1e-4, atol=0)


def test_none_leaves_the_mapping_at_0() -> None:
    (parameter,) = (p for n, p in networks("policy=normal").actor.named_parameters() if "state_independent" in n)
    assert parameter.item() == 0


def test_one_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy.scale_init=0.005\n    cannot be reached"):
        networks("policy=normal", "policy.scale_mapping=biased_softplus_1.0", "policy.scale_init=0.005")


def test_a_network_of_ones_own_needs_a_layer_to_start_from() -> None:
    with pytest.raises(ConfigError, match="needs a network that ends in a linear layer"):
        networks(
            "policy=normal", "policy.state_independent_scale=false", "policy.scale_init=0.3", "policy.orthogonal=false",
            "policy.actor_network={_target_: torchrl.modules.MLP, bias_last_layer: false}",
        )  # fmt: skip


@pytest.mark.parametrize("independent", ["true", "false"])
def test_it_stays_below_its_bound(independent: str) -> None:
    settings = ["policy=normal", f"policy.state_independent_scale={independent}"]
    built, free = networks(*settings, "policy.scale_ub=0.5"), networks(*settings)
    with torch.no_grad():
        for ours, theirs in zip(built.actor.parameters(), free.actor.parameters(), strict=True):
            theirs.copy_(ours.add_(torch.randn_like(ours)))
    steps = TensorDict({"observation": 3 * torch.randn(40, 3)}, [40])
    bounded = built.actor.get_dist_params(steps)["scale"]
    torch.testing.assert_close(bounded, free.actor.get_dist_params(steps)["scale"].clamp(max=0.5))


def test_beyond_a_bound_only_gradients_that_lead_back_pass() -> None:
    scale = torch.tensor([0.2, 0.2, 0.9, 0.9, 0.05, 0.05], requires_grad=True)
    kept = within(scale, 0.1, 0.5)
    torch.testing.assert_close(kept, scale.clamp(0.1, 0.5))
    kept.backward(torch.tensor([2.0, -2.0, 3.0, -3.0, 4.0, -4.0]))
    assert scale.grad is not None
    assert scale.grad.tolist() == [2, -2, 3, 0, 0, -4]
    with both_ways():
        kept = within(scale, 0.1, 0.5)
    assert torch.autograd.grad(kept.sum(), scale)[0].tolist() == [1] * 6
    assert torch.autograd.grad(-kept.sum(), scale)[0].tolist() == [-1] * 6


@pytest.mark.parametrize(
    ("setting", "key"),
    [("scale_lb=0.7", "scale_ub"), ("scale_init=0.7", "scale_init"), ("scale_init=1e-5", "scale_init")],
)
def test_bounds_that_exclude_each_other_or_the_start_are_refused(setting: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        networks("policy=normal", "policy.scale_ub=0.5", f"policy.{setting}")
    assert [problem.key for problem in error.value.problems] == [f"policy.{key}"]


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ("sofplus", "is no mapping of torchrl's. Did you mean softplus"),
        ("biased_softplus_1_2_3", "is no mapping of torchrl's. Did you mean biased_softplus"),
        ("relu", "would keep the standard deviation where it starts(.|\n)*policy.scale_init"),
    ],
)
def test_a_mapping_that_is_none_or_never_moves_is_refused(mapping: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.scale_mapping={mapping}\n *{told}"):
        load_config(["policy=normal", f"policy.scale_mapping={mapping}"])


@pytest.mark.parametrize("mapping", ["expln", "none", "biased_softplus", "biased_softplus_.5_1e-3"])
def test_what_else_torchrl_has_is_a_mapping(mapping: str) -> None:
    config = load_config(["policy=normal", f"policy.scale_mapping={mapping}"]).policy
    assert isinstance(config, GaussianConfig)
    mappings(config.scale_mapping)
