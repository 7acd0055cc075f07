"""Value targets in units of their running deviation, against NumPy on all the targets so far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents import batch_of, minibatch_loss, networks
from tensordict import TensorDict

from rlexp.config import ConfigError
from rlexp.kernels.select import Kernels
from rlexp.policies import ActorCritic


def values_of(built: ActorCritic) -> torch.Tensor:
    """The critic's outputs in some states, where it is feed-forward."""
    observation = torch.randn(9, 11, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = built.critic(TensorDict({"observation": observation}, [9]))["state_value"]
    return found.double()


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
def test_targets_are_scaled_and_advantages_are_not(estimator: str, kernel: bool) -> None:
    """Each batch's scale holds for all epochs of its update; the values keep what they mean when it moves."""
    built, other = networks(), networks()
    scaled = minibatch_loss(f"loss.estimator={estimator}", "loss.normalize_value=true").build_advantage(built)
    plain = minibatch_loss(f"loss.estimator={estimator}").build_advantage(other)
    advantage = Kernels(kernel).advantage(scaled)
    scale, targets = 1.0, np.empty(0)
    for number in range(3):
        batch = batch_of(built, 2, 16)
        batch["next", "reward"] = batch["next", "reward"] * 10 + number
        for epoch in range(2):
            # A critic whose last layer is `scale` times as large gives the same values in the units of the rewards.
            other.critic.load_state_dict(built.critic.state_dict())
            with torch.no_grad():
                for parameter in other.critic.module[-1].parameters():
                    parameter.mul_(scale)
            expected = batch.exclude("advantage", "value_target", "state_value")
            plain(expected)
            before = values_of(built) * scale
            advantage(batch)
            target = expected["value_target"].double().numpy()
            if epoch == 0:
                targets = np.append(targets, target)
                first, moved = batch["state_value"].clone(), scale
                scale = float(np.sqrt(np.var(targets) + 1e-8))
                if number:  # before the first batch the critic's outputs are in no unit
                    torch.testing.assert_close(values_of(built) * scale, before, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(first * scale, expected["state_value"], rtol=1e-3, atol=1e-3)
                    assert abs(moved / scale - 1) > 1e-3, "else there was nothing to see"
            np.testing.assert_allclose(batch["advantage"], expected["advantage"], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(batch["value_target"], target / scale, rtol=1e-3, atol=1e-3)
            assert torch.equal(batch["state_value"], first)
            with torch.no_grad():
                for parameter in built.critic.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    assert scale > 5


@pytest.mark.parametrize("policy", [["policy=gru"], ["policy.shared=true"], ["policy.layer_norm=true"]], ids=str)
def test_every_shipped_critic_can_be_rescaled(policy: list[str]) -> None:
    assert minibatch_loss("loss.normalize_value=true").build_advantage(networks(*policy)).value_norm is not None


def test_a_critic_without_a_last_linear_layer_is_refused() -> None:
    loss = minibatch_loss("loss.normalize_value=true")
    loss.build_advantage(networks("policy.critic_network={_target_: torchrl.modules.MLP, num_cells: [8]}"))
    with pytest.raises(ConfigError, match=r"loss.normalize_value=true\n    rescales the critic's last layer"):
        loss.build_advantage(
            networks("policy.critic_network={_target_: torchrl.modules.MLP, activate_last_layer: true}")
        )
