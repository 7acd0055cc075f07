"""Kernels with action masks and several choices, against torchrl's parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp import load_config
from rlexp.agent.evaluation import evaluate
from rlexp.experiment import ExperimentConfig
from rlexp.kernels.losses import fast_loss
from rlexp.kernels.rollout import RolloutCollector
from rlexp.losses import MinibatchLossConfig
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import carry_state

CPU = torch.device("cpu")
GRU = ["policy=gru", "policy.sequence_length=5", "policy.hidden_size=8"]
KINDS = {
    "masked": ["env.kwargs.mask=entry", "policy=categorical"],
    "several": ["env.kwargs.action=multi", "policy=categorical"],
    "several, masked": ["env.kwargs={action: multi, mask: entry}", "policy=categorical"],
    "several, masked, entries": ["env.kwargs={action: multi, mask: entry, observation: dict}", "policy=categorical"],
    "several, masked, entries, gru": ["env.kwargs={action: multi, mask: entry, observation: dict}", *GRU],
}


def built(overrides: list[str]) -> tuple[ExperimentConfig, Any, ActorCritic]:
    """An environment, and networks whose actions are not all alike."""
    config = load_config(
        [
            *("env=gym", "env.id=choosing:Choosing-v0", "env/transforms=none", "env.num_envs=3"),
            *("collector.frames_per_batch=60", "minibatch_size=30", *overrides),
        ]
    )
    env = config.env.build(3)
    torch.manual_seed(0)
    networks = config.policy.build(env, CPU)
    carry_state(env, networks.actor)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return config, env, networks


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_a_batch_is_torchrls_from_the_same_noise(overrides: list[str]) -> None:
    config, env, networks = built(overrides)
    env.set_seed(3)
    torch.manual_seed(1)
    ours = RolloutCollector(env, networks.actor, 60, CPU).rollout()
    env.set_seed(3)
    settings = {"split_trajs": False, "storing_device": CPU, "trust_policy": True}
    theirs = Collector(
        *(env, networks.actor), frames_per_batch=60, total_frames=-1, auto_register_policy_transforms=False, **settings
    )
    batches = iter(theirs)
    torch.manual_seed(1)
    expected = next(batches)
    assert set(ours.keys(True, True)) == set(expected.keys(True, True))
    assert ours["next", "done"].any()
    for key in expected.keys(True, True):
        assert ours[key].dtype == expected[key].dtype, key
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-4, atol=1e-5, msg=str(key))
    check_losses(ours, networks, config)


def check_losses(batch: Any, networks: ActorCritic, config: ExperimentConfig) -> None:
    """Losses and gradients of the kernels are those of torchrl's modules."""
    with torch.no_grad():
        for parameter in networks.actor.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for option in ("clip_ppo", "kl_ppo", "a2c"):
        loss = load_config([f"loss={option}", "loss.entropy_coeff=0.1"]).loss
        assert isinstance(loss, MinibatchLossConfig)
        loss.build_advantage(networks)(batch)
        found = []
        reference = loss.build(networks)
        for each in (reference, fast_loss(reference, networks)):
            prepared = batch.clone()
            each.prepare(prepared)
            steps = {key: prepared[key].flatten(0, 1) for key in each.keys}
            losses = each.losses(steps)
            total = torch.stack([value for key, value in losses.items() if key.startswith("loss_")]).sum()
            found.append((losses, torch.autograd.grad(total, networks.parameters())))
        (theirs, expected), (ours, gradient) = found
        for key in ("loss_objective", "loss_critic", "loss_entropy"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)
        for a, b in zip(gradient, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
            assert a.isfinite().all()


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_evaluation_is_that_of_torchrls_loop(overrides: list[str]) -> None:
    """The environment asserts that every action, the likeliest of the allowed ones, is allowed."""
    _, env, networks = built(overrides)
    found = [evaluate(env, networks.actor, [1, 2, 3, 4], kernels=kernels) for kernels in (True, False)]
    assert found[0].lengths == found[1].lengths
    assert found[0].returns == pytest.approx(found[1].returns, rel=1e-6)
    with set_exploration_type(ExplorationType.RANDOM):
        evaluate(env, networks.actor, [5], deterministic=False)
