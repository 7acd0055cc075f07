"""Value targets in units of their running deviation, against NumPy on all the targets so far."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents import batch_of, minibatch_loss, networks

from rlexp.kernels.select import Kernels


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
def test_targets_are_scaled_and_advantages_are_not(estimator: str, kernel: bool) -> None:
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
            advantage(batch)
            target = expected["value_target"].double().numpy()
            if epoch == 0:
                targets = np.append(targets, target)
                first = batch["state_value"].clone()
            scale = float(np.sqrt(np.var(targets) + 1e-8))
            np.testing.assert_allclose(batch["advantage"], expected["advantage"], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(batch["value_target"], target / scale, rtol=1e-3, atol=1e-3)
            assert torch.equal(batch["state_value"], first)
            with torch.no_grad():
                for parameter in built.critic.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    assert scale > 5
