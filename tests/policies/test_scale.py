"""The standard deviation that a Gaussian policy starts with."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.policies import ActorCritic

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
