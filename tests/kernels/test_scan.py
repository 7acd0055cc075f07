"""Advantages by a parallel scan against the estimators that they stand in for."""

from __future__ import annotations

import pytest
import torch
from agents import batch_of, minibatch_loss, networks
from torchrl.objectives.value import GAE, TDLambdaEstimator

from rlexp.kernels.scan import discounted_sums, fast_advantage
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses.advantages import AdvantageEstimator
from rlexp.policies.recurrent import STATE

KEYS = ["advantage", "value_target", "state_value"]


@pytest.mark.parametrize("length", [1, 2, 3, 64, 100])
def test_scan_is_the_recursion(length: int) -> None:
    x, discount = torch.randn(3, length, dtype=torch.float64), torch.rand(3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    following = torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(length)):
        expected[:, t] = following = x[:, t] + discount[:, t] * following
    torch.testing.assert_close(discounted_sums(x, discount), expected)


@pytest.mark.parametrize("policy", [[], ["policy=gru", "policy.sequence_length=8"]], ids=["mlp", "gru"])
@pytest.mark.parametrize("estimator", ["gae", "td_lambda", "td1", "td0", "vtrace"])
def test_kernel_is_the_estimator_also_with_newer_weights(estimator: str, policy: list[str]) -> None:
    built = networks(*policy)
    batch = batch_of(built, 4, 40)
    config = minibatch_loss(f"loss.estimator={estimator}", "loss.gamma=0.97", "loss.lmbda=0.9", "loss.average_gae=true")
    reference = config.build_advantage(built)
    kernel = fast_advantage(reference)
    theirs, ours = batch.clone(), batch.clone()
    for _ in range(2):
        reference(theirs)
        kernel(ours)
        for key in KEYS:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5, msg=key)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert batch["next", "done"].any()
    assert STATE in batch or not policy


def test_other_estimators_have_no_kernel() -> None:
    built = networks()
    with pytest.raises(UnsupportedError, match="TDLambdaEstimator"):
        fast_advantage(AdvantageEstimator(built.critic, TDLambdaEstimator(gamma=0.9, lmbda=0.9, value_network=None)))
    own = type("Shifted", (AdvantageEstimator,), {})
    with pytest.raises(UnsupportedError, match="Shifted may compute more"):
        fast_advantage(own(built.critic, GAE(gamma=0.9, lmbda=0.9, value_network=None)))
    vtrace = minibatch_loss("loss.estimator=vtrace").build_advantage(built)
    vtrace.estimator.rho_thresh.fill_(2.0)
    with pytest.raises(UnsupportedError, match="truncation"):
        fast_advantage(vtrace)
