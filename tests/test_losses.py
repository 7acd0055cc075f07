"""The objective against formulas written out from the papers, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from rlexp import Trainer, load_config
from rlexp.kernels.losses import FastClipPPO
from rlexp.training.learners.ppo import explained_variance

TINY = [
    *("logger=none", "total_frames=512", "collector.frames_per_batch=256", "env.num_envs=4", "minibatch_size=64"),
    *("env.init_random_steps=64", "evaluation.episodes=1", "loss.gamma=0.97", "loss.lmbda=0.9"),
]


def collected(overrides: list[str], folder: Path) -> tuple[Trainer, TensorDictBase]:
    trainer = Trainer.from_config(load_config([*TINY, *overrides]), folder)
    return trainer, trainer.collect()


def test_advantage_is_the_sum_of_discounted_td_errors(tmp_path: Path) -> None:
    trainer, batch = collected(["loss.normalize_reward=false", "env.max_episode_steps=4"], tmp_path)
    with torch.no_grad():
        trainer.learner.objective.advantage(batch)
        value = trainer.networks.critic(batch.select("observation"))["state_value"][..., 0].double().numpy()
        after = trainer.networks.critic(batch["next"].select("observation"))["state_value"][..., 0].double().numpy()
    reward, done, terminated = (batch["next", k][..., 0].double().numpy() for k in ("reward", "done", "terminated"))
    assert done.sum() > terminated.sum() >= 0, "the batch must hold truncated episodes"
    expected = np.zeros_like(value)
    for env in range(len(value)):
        for start in range(value.shape[1]):
            # Schulman et al. 2016, eq. 16, summed term by term; a terminal state has no value, a truncated one has.
            for k in range(start, value.shape[1]):
                delta = reward[env, k] + 0.97 * after[env, k] * (1 - terminated[env, k]) - value[env, k]
                expected[env, start] += (0.97 * 0.9) ** (k - start) * delta
                if done[env, k]:
                    break
    np.testing.assert_allclose(batch["advantage"][..., 0].numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batch["value_target"][..., 0].numpy(), expected + value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("critic", ["l2", "smooth_l1", "l1"])
def test_loss_is_the_clipped_surrogate(critic: str, tmp_path: Path) -> None:
    overrides = [f"loss.loss_critic_type={critic}", "loss.clip_epsilon=0.1", "loss.critic_coeff=0.7"]
    trainer, batch = collected(overrides, tmp_path)
    trainer.update(batch)  # so that the policy differs from the one that acted
    minibatch = batch.reshape(-1)[torch.randperm(256)[:64]]
    assert isinstance(trainer.learner.objective.loss, FastClipPPO)
    losses = trainer.learner.objective.loss(minibatch)
    with torch.no_grad():
        new = trainer.networks.actor.get_dist(minibatch.select("observation")).log_prob(minibatch["action"]).double()
        value = trainer.networks.critic(minibatch.select("observation"))["state_value"][..., 0].double()
    advantage = minibatch["advantage"][..., 0].double().numpy()
    advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
    ratio = np.exp((new - minibatch["action_log_prob"].double()).numpy())
    surrogate = np.minimum(ratio * advantage, ratio.clip(0.9, 1.1) * advantage)
    assert (abs(ratio - 1) > 0.1).any()
    assert losses["loss_objective"].item() == pytest.approx(-surrogate.mean(), rel=1e-3, abs=1e-5)
    error = (value - minibatch["value_target"][..., 0].double()).numpy()
    distance = {"l2": error**2, "l1": abs(error)}.get(
        critic, np.where(abs(error) < 1, 0.5 * error**2, abs(error) - 0.5)
    )
    assert losses["loss_critic"].item() == pytest.approx(0.7 * distance.mean(), rel=1e-4)


def test_first_importance_ratios_are_one(tmp_path: Path) -> None:
    trainer, batch = collected([], tmp_path)
    with torch.no_grad():
        trainer.learner.objective.advantage(batch)
        trainer.learner.objective.loss.prepare(batch)
        losses = trainer.learner.objective.loss.losses(next(trainer.learner.minibatches(batch)))
    assert losses["log_weight"].abs().max().item() < 1e-4


def test_minibatches_cover_each_step_at_most_once(tmp_path: Path) -> None:
    trainer, _ = collected(["minibatch_size=100"], tmp_path)
    keys = trainer.learner.objective.loss.step_keys
    batch = TensorDict({key: torch.arange(256.0).view(4, 64) for key in keys}, batch_size=[4, 64])
    seen = [m[keys[0]] for m in trainer.learner.minibatches(batch)]
    assert [len(m) for m in seen] == [100, 100]
    assert len(torch.cat(seen).unique()) == 200
    again = next(trainer.learner.minibatches(batch))[keys[0]]
    assert not torch.equal(again, seen[0])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss=any", "loss.loss_module._target_=torchrl.objectives.ClipPPOLoss"],
        ["loss=any", "loss.loss_module._target_=torchrl.objectives.A2CLoss", "loss.loss_module.functional=false"],
        ["optim=any", "optim.optimizer._target_=torch.optim.SGD", "optim.optimizer.momentum=0.9"],
    ],
)
def test_actor_and_critic_are_trained_as_themselves(overrides: list[str], tmp_path: Path) -> None:
    trainer, batch = collected(overrides, tmp_path)
    parameters = trainer.networks.parameters()
    trained = [p for group in trainer.learner.optimizer.param_groups for p in group["params"]]
    expected = parameters if "optim=any" in overrides else [trainer.learner.weights]
    assert all(a is b for a, b in zip(trained, expected, strict=True))
    before = [p.detach().clone() for p in parameters]
    trainer.update(batch)
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert torch.equal(torch.cat([p.detach().flatten() for p in parameters]), trainer.learner.weights.detach())


def test_explained_variance() -> None:
    target = torch.randn(1000)
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.zeros(1000), target) == 0
    assert explained_variance(-target, target) == pytest.approx(-3)
    assert not math.isnan(explained_variance(target, torch.ones(1000)))
