"""The estimators against torchrl's, against the papers' sums in float64, and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import papers
import pytest
import torch
from agents import batch_of, networks
from rlexp.kernels.advantages import FastGAE
from tensordict import TensorDict
from torchrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator
from torchrl.objectives.value.functional import vtrace_advantage_estimate

from rlexp import load_config
from rlexp.kernels.scan import discounted_sums
from rlexp.policies import ActorCritic

ESTIMATORS = ["gae", "td_lambda", "td1", "td0", "vtrace"]
SIZES = [(1, 500), (16, 64), (5, 1)]
KEYS = ["advantage", "value_target", "state_value"]


def estimated(built: ActorCritic, batch: TensorDict, estimator: str, *overrides: str) -> TensorDict:
    spec = load_config([f"loss.estimator={estimator}", "loss.gamma=0.97", "loss.lmbda=0.9", *overrides]).loss
    return spec.build_advantage(built)(batch.clone())


@pytest.mark.parametrize("length", [1, 2, 3, 64, 100])
def test_scan_is_the_recursion(length: int) -> None:
    x, discount = torch.randn(3, length, dtype=torch.float64), torch.rand(3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    following = torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(length)):
        expected[:, t] = following = x[:, t] + discount[:, t] * following
    torch.testing.assert_close(discounted_sums(x, discount), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS[:-1])
def test_estimator_equals_torchrls(estimator: str, size: tuple[int, int]) -> None:
    built = networks()
    batch = batch_of(built, *size)
    theirs: dict[str, Any] = {
        "gae": lambda: GAE(gamma=0.97, lmbda=0.9, value_network=built.critic),
        "td_lambda": lambda: TDLambdaEstimator(gamma=0.97, lmbda=0.9, value_network=built.critic),
        "td1": lambda: TD1Estimator(gamma=0.97, value_network=built.critic),
        "td0": lambda: TD0Estimator(gamma=0.97, value_network=built.critic),
    }
    with torch.no_grad():
        expected = theirs[estimator]()(batch.clone())
    found = estimated(built, batch, estimator)
    for key in KEYS:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("size", SIZES)
def test_v_trace_equals_torchrls(size: tuple[int, int]) -> None:
    built = networks()
    batch = batch_of(built, *size)
    with torch.no_grad():
        # Not torchrl's module: it takes the probability of an action that it draws anew, not of the one that was taken.
        log_prob = built.actor.get_dist(batch.select("observation")).log_prob(batch["action"])[..., None]
        value, next_value = (built.critic(td.select("observation"))["state_value"] for td in (batch, batch["next"]))
        after = (batch["next", key] for key in ("reward", "done", "terminated"))
        old_log_prob = batch["action_log_prob"][..., None]
        advantage, target = vtrace_advantage_estimate(0.97, log_prob, old_log_prob, value, next_value, *after)
    found = estimated(built, batch, "vtrace")
    torch.testing.assert_close(found["advantage"], advantage, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["value_target"], target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_is_the_papers_sum(estimator: str, size: tuple[int, int]) -> None:
    built = networks()
    batch = batch_of(built, *size)
    found = estimated(built, batch, estimator)
    with torch.no_grad():
        next_value = built.critic(batch["next"].select("observation"))["state_value"][..., 0].double().numpy()
        log_prob = built.actor.get_dist(batch.select("observation")).log_prob(batch["action"]).double()
    value = found["state_value"][..., 0].double().numpy()
    reward = batch["next", "reward"][..., 0].double().numpy()
    done, terminated = (batch["next", key][..., 0].numpy() for key in ("done", "terminated"))
    if size != (5, 1):
        assert done.sum() > terminated.sum() > 0
    if estimator == "vtrace":
        ratio = (log_prob - batch["action_log_prob"].double()).exp().numpy()
        assert (ratio < 1).any()
        advantage, target = papers.v_trace(reward, value, next_value, done, terminated, 0.97, ratio)
    else:
        lmbda = {"td1": 1.0, "td0": 0.0}.get(estimator, 0.9)
        target = papers.lambda_return(reward, next_value, done, terminated, 0.97, lmbda)
        advantage = target - value
    np.testing.assert_allclose(found["advantage"][..., 0].numpy(), advantage, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["value_target"][..., 0].numpy(), target, rtol=1e-5, atol=1e-5)


def test_without_a_change_of_the_policy_v_trace_is_td1() -> None:
    built = networks()
    batch = batch_of(built, 4, 32)
    with torch.no_grad():
        batch.set("action_log_prob", built.actor.get_dist(batch.select("observation")).log_prob(batch["action"]))
    v_trace, td1 = (estimated(built, batch, estimator) for estimator in ("vtrace", "td1"))
    for key in KEYS:
        torch.testing.assert_close(v_trace[key], td1[key], rtol=1e-5, atol=1e-5)


def test_batch_normalised_advantage_equals_torchrls() -> None:
    built = networks()
    batch = batch_of(built, 16, 64)
    expected = GAE(gamma=0.99, lmbda=0.95, value_network=built.critic, average_gae=True)(batch.clone())
    FastGAE(built.critic, 0.99, 0.95, average=True)(batch)
    torch.testing.assert_close(batch["advantage"], expected["advantage"], rtol=1e-5, atol=1e-5)


def test_state_value_stays_that_of_before_the_update() -> None:
    built = networks()
    batch = batch_of(built, 2, 8)
    estimator = FastGAE(built.critic, 0.99, 0.95, average=False)
    estimator(batch)
    before = batch.clone()
    with torch.no_grad():
        for parameter in built.critic.parameters():
            parameter.add_(0.1)
    estimator(batch)
    assert torch.equal(batch["state_value"], before["state_value"])
    assert not torch.equal(batch["value_target"], before["value_target"])
