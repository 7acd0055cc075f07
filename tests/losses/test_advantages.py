"""The estimators and their kernels against the papers' sums in float64, and against each other."""

from __future__ import annotations

import numpy as np
import papers
import pytest
import torch
from agents import batch_of, minibatch_loss, networks
from tensordict import TensorDict
from torchrl.objectives.value import TD0Estimator, TD1Estimator, TDLambdaEstimator

from rlexp.kernels.scan import fast_advantage
from rlexp.policies import ActorCritic

ESTIMATORS = ["gae", "td_lambda", "td1", "td0", "vtrace"]
SIZES = [(1, 500), (16, 64), (5, 1)]
KEYS = ["advantage", "value_target", "state_value"]


@pytest.fixture(scope="module")
def built() -> ActorCritic:
    return networks()


def estimated(built: ActorCritic, batch: TensorDict, estimator: str, *, kernel: bool) -> TensorDict:
    config = minibatch_loss(f"loss.estimator={estimator}", "loss.gamma=0.97", "loss.lmbda=0.9")
    reference = config.build_advantage(built)
    found: TensorDict = (fast_advantage(reference) if kernel else reference)(batch.clone())
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
def test_estimator_is_the_papers_sum(kernel: bool, estimator: str, size: tuple[int, int], built: ActorCritic) -> None:
    batch = batch_of(built, *size)
    found = estimated(built, batch, estimator, kernel=kernel)
    with torch.no_grad():
        value, next_value = (
            built.critic(steps.select("observation"))["state_value"][..., 0].double().numpy()
            for steps in (batch, batch["next"])
        )
        log_prob = built.actor.get_dist(batch.select("observation")).log_prob(batch["action"]).double()
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
    for key, expected in zip(KEYS, (advantage, target, value), strict=True):
        np.testing.assert_allclose(found[key][..., 0].numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("estimator", "theirs"),
    [
        ("td_lambda", TDLambdaEstimator(gamma=0.97, lmbda=0.9, value_network=None)),
        ("td1", TD1Estimator(gamma=0.97, value_network=None)),
        ("td0", TD0Estimator(gamma=0.97, value_network=None)),
    ],
)
def test_gae_is_torchrls_other_estimators_as_well(estimator: str, theirs: torch.nn.Module, built: ActorCritic) -> None:
    batch = estimated(built, batch_of(built, 16, 64), estimator, kernel=False)
    expected = theirs(batch.clone())
    for key in KEYS:
        torch.testing.assert_close(batch[key], expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
def test_without_a_change_of_the_policy_v_trace_is_td1(kernel: bool, built: ActorCritic) -> None:
    batch = batch_of(built, 4, 32)
    with torch.no_grad():
        batch.set("action_log_prob", built.actor.get_dist(batch.select("observation")).log_prob(batch["action"]))
    v_trace, td1 = (estimated(built, batch, estimator, kernel=kernel) for estimator in ("vtrace", "td1"))
    for key in KEYS:
        torch.testing.assert_close(v_trace[key], td1[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_normalised_over_the_batch_the_advantage_has_mean_zero_and_deviation_one(estimator: str, kernel: bool) -> None:
    built = networks()
    reference = minibatch_loss(f"loss.estimator={estimator}", "loss.average_gae=true").build_advantage(built)
    batch = (fast_advantage(reference) if kernel else reference)(batch_of(built, 16, 64))
    plain = minibatch_loss(f"loss.estimator={estimator}").build_advantage(built)(batch_of(built, 16, 64))
    centred = plain["advantage"] - plain["advantage"].mean()
    torch.testing.assert_close(batch["advantage"], centred / centred.std(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch["value_target"], plain["value_target"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])
def test_state_value_stays_that_of_before_the_update(kernel: bool) -> None:
    built = networks()
    batch = batch_of(built, 2, 8)
    reference = minibatch_loss().build_advantage(built)
    estimator = fast_advantage(reference) if kernel else reference
    estimator(batch)
    before = batch.clone()
    with torch.no_grad():
        for parameter in built.critic.parameters():
            parameter.add_(0.1)
    estimator(batch)
    assert torch.equal(batch["state_value"], before["state_value"])
    assert not torch.equal(batch["value_target"], before["value_target"])
