"""Distributions of actions: torchrl's, torch's, and the beta distribution over bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from agents import composed
from torch import distributions

from rlexp import Trainer
from rlexp.policies.heads import BoundedBeta

SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=4", "minibatch_size=32", "total_frames=64", "num_epochs=1"),
    *("env.init_random_steps=16", "evaluation.episodes=1", "logger=none"),
]


def test_beta_is_torchs_beta_stretched_over_the_bounds() -> None:
    alpha, beta = 1 + 3 * torch.rand(7, 2), 1 + 3 * torch.rand(7, 2)
    low, high = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 4.0])
    ours = BoundedBeta(alpha, beta, low=low, high=high)
    stretch = distributions.AffineTransform(low, high - low, event_dim=1)
    unit = distributions.Independent(distributions.Beta(alpha, beta), 1)
    theirs = distributions.TransformedDistribution(unit, [stretch], validate_args=False)
    torch.manual_seed(0)
    action = ours.rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(action, theirs.rsample())
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), unit.entropy() + (high - low).log().sum())
    torch.testing.assert_close(ours.mean, low + (high - low) * alpha / (alpha + beta))
    assert ours.log_prob(high).isfinite().all()


def test_beta_is_on_the_device_of_its_parameters() -> None:
    parameters = torch.ones(2, 3, device="meta")
    low, high = -torch.ones(3), torch.ones(3)
    there = BoundedBeta(parameters, parameters, low=low, high=high)
    assert {x.device.type for x in (there.mean, there.log_prob(parameters), there.entropy())} == {"meta"}


def test_kl_of_bounded_betas_is_that_of_samples() -> None:
    torch.manual_seed(0)
    low, high = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 4.0])
    p, q = (BoundedBeta(1 + 3 * torch.rand(2), 1 + 3 * torch.rand(2), low=low, high=high) for _ in range(2))
    samples = p.sample(torch.Size([100_000]))
    estimate = (p.log_prob(samples) - q.log_prob(samples)).mean()
    torch.testing.assert_close(distributions.kl_divergence(p, q), estimate, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(distributions.kl_divergence(p, p), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_actions_are_clipped_by_the_environment_and_nowhere_else(tmp_path: Path) -> None:
    """Pendulum applies torques up to 2; the batch holds what was sampled, and its log-probability."""
    config = composed("env=pendulum", "policy=normal", *SMALL, "policy.scale_lb=20")
    trainer = Trainer(config, tmp_path)
    batch = next(iter(trainer.collector))
    assert batch["action"].abs().max() > 10
    assert np.abs(trainer.env.base_env.arrays.action).max() <= 2
    normal = distributions.Normal(batch["loc"], batch["scale"])
    torch.testing.assert_close(batch["action_log_prob"], normal.log_prob(batch["action"]).sum(-1))
    stepped = trainer.env.base_env.step(trainer.env.base_env.reset().set("action", torch.full((4, 1), 50.0)))
    assert stepped["action"].max() == 50
    assert np.abs(trainer.env.base_env.arrays.action).max() == 2
    trainer.close()
