"""The losses and their kernels against the papers' formulas in float64, values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import papers
import pytest
import torch
from agents import batch_of, minibatch_loss, networks
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import KLPENPPOLoss

from rlexp.config import ConfigError
from rlexp.kernels.losses import fast_loss
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses import PolicyLossConfig
from rlexp.losses.kl_penalty import KLPenaltyLoss
from rlexp.losses.module import MinibatchLoss
from rlexp.policies import ActorCritic

OWN: dict[str, dict[str, Any]] = {
    "clip_ppo": {"clip_epsilon": 0.1},
    "kl_ppo": {"beta": 3.0, "dtarg": 0.03},
    "spo": {"epsilon": 0.15},
    "rpo": {"clip_epsilon": 0.1, "alpha": 0.3},
    "a2c": {},
    "reinforce": {},
}
SHARED: dict[str, Any] = {
    "loss_critic_type": "smooth_l1",
    "critic_coeff": 1.0,
    "entropy_coeff": 0.0,
    "normalize_advantage": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bonus": {"entropy_coeff": 0.01},
    "l2": {"loss_critic_type": "l2", "critic_coeff": 0.3},
    "clipped_value": {"loss_critic_type": "l1", "clip_value": 0.05},
    "normalized": {"normalize_advantage": True},
}
BOTH = pytest.mark.parametrize("kernel", [False, True], ids=["torchrl", "kernel"])


def loss_of(kind: str, built: ActorCritic, settings: dict[str, Any], *, kernel: bool) -> MinibatchLoss:
    config = minibatch_loss(f"loss={kind}")
    assert isinstance(config, PolicyLossConfig)
    reference = config.model_copy(update=OWN[kind] | SHARED | settings).build(built)
    return fast_loss(reference, built) if kernel else reference


def with_advantages(built: ActorCritic, *size: int) -> TensorDict:
    batch = batch_of(built, *size)
    minibatch_loss().build_advantage(built)(batch)
    batch["state_value"] += 0.2 * torch.randn_like(batch["state_value"])  # the critic has learned since
    return batch


def evaluated(
    loss: MinibatchLoss, batch: TensorDict, built: ActorCritic
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The losses of a batch ``[num_envs, steps]`` as one minibatch, and their gradient."""
    loss.prepare(batch)
    torch.manual_seed(2)  # the entropy is sampled
    losses = loss.losses({key: batch[key].flatten(0, 1) for key in loss.keys})
    total = torch.stack([value for key, value in losses.items() if key.startswith("loss_")]).sum()
    gradients = torch.autograd.grad(total, built.parameters())
    return {key: value.detach() for key, value in losses.items()}, list(gradients)


def moved(weights: list[papers.Array], direction: list[papers.Array], step: float) -> list[papers.Array]:
    return [w + step * d for w, d in zip(weights, direction, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("kind", "kernel"), [(k, b) for k in OWN for b in (False, True) if (k, b) != ("rpo", True)])
def test_loss_and_slope_are_the_papers(kind: str, variant: str, kernel: bool) -> None:
    settings = OWN[kind] | SHARED | VARIANTS[variant]
    built = networks()
    batch = with_advantages(built, 4, 64)
    batch["action"] = batch["action"].clamp(-0.99, 0.99)  # within the bounds the squashing has an inverse
    with torch.no_grad():
        batch["action_log_prob"] = built.actor.build_dist_from_params(batch).log_prob(batch["action"])
    losses, gradients = evaluated(loss_of(kind, built, settings, kernel=kernel), batch, built)
    torch.manual_seed(2)
    if kind == "rpo":
        settings["disturbance"] = 0.3 * (2 * torch.rand(256, 3).double().numpy() - 1)
    noise = torch.randn(256, 3).double().numpy()
    weights = [parameter.detach().double().numpy() for parameter in built.parameters()]
    slopes = [gradient.double().numpy() for gradient in gradients]
    flat = batch.reshape(-1)
    steps = {key: value.double().numpy() for key, value in flat.items() if isinstance(value, torch.Tensor)}
    ratio = np.exp((built.actor.get_dist(flat).log_prob(flat["action"]) - flat["action_log_prob"]).detach().numpy())
    assert (abs(ratio - 1) > 0.1).any()

    expected = papers.objective(weights, steps, kind, settings, noise)
    for key, value in expected.items():
        if key in losses or settings["entropy_coeff"]:
            assert losses[key].item() == pytest.approx(value, rel=1e-4, abs=1e-5), key
    generator = np.random.default_rng(0)
    for _ in range(3):
        direction = [generator.standard_normal(w.shape) for w in weights]
        ahead, behind = (
            sum(papers.objective(moved(weights, direction, h), steps, kind, settings, noise).values())
            for h in (1e-6, -1e-6)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-3, abs=1e-3)


@BOTH
def test_without_bounds_or_penalty_clipped_and_penalised_are_one(kernel: bool) -> None:
    built = networks()
    batch = with_advantages(built, 4, 64)
    with torch.no_grad():  # an old policy so near that no ratio is beyond the widest bounds that torchrl takes
        now = built.actor.get_dist(batch).log_prob(batch["action"])
    batch["action_log_prob"] = now + 0.2 * torch.rand_like(now)
    clipped = evaluated(loss_of("clip_ppo", built, {"clip_epsilon": 0.999}, kernel=kernel), batch, built)
    free = evaluated(loss_of("kl_ppo", built, {"beta": 0.0}, kernel=kernel), batch, built)
    torch.testing.assert_close(clipped[0]["loss_objective"], free[0]["loss_objective"])
    for a, b in zip(clipped[1], free[1], strict=True):
        torch.testing.assert_close(a, b)


@BOTH
def test_on_policy_every_objective_has_the_policy_gradient(kernel: bool) -> None:
    built = networks()
    batch = with_advantages(built, 4, 64)
    with torch.no_grad():
        now = built.actor.get_dist_params(batch.select("observation"))
        batch["loc"], batch["scale"] = now["loc"], now["scale"]
        batch["action_log_prob"] = built.actor.build_dist_from_params(batch).log_prob(batch["action"])
    kinds = OWN.keys() - {"rpo"}  # which is never quite on policy
    gradients = [evaluated(loss_of(kind, built, {}, kernel=kernel), batch, built)[1] for kind in kinds]
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@BOTH
def test_kl_of_squashed_gaussians_is_that_of_the_latent_ones_and_its_estimate_is_near(kernel: bool) -> None:
    built = networks()
    torch.manual_seed(3)
    observation = torch.randn(1, 11).expand(1, 40_000, 11)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        batch = built.actor(TensorDict({"observation": observation}, [1, 40_000]))
        for key in ("advantage", "value_target", "state_value"):
            batch[key] = torch.zeros(1, 40_000, 1)
        for parameter in built.actor.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        now = built.actor.get_dist_params(batch.select("observation"))
    exact = papers.gaussian_kl(
        *(t[0, :1].double().numpy() for t in (batch["loc"], batch["scale"], now["loc"], now["scale"]))
    ).item()
    losses, _ = evaluated(loss_of("kl_ppo", built, {}, kernel=kernel), batch, built)
    assert losses["kl"].item() == pytest.approx(exact, rel=1e-3)
    clipped = loss_of("clip_ppo", built, {}, kernel=kernel)
    records = {name: value[None] for name, value in evaluated(clipped, batch, built)[0].items()}
    assert clipped.kl(records).item() == pytest.approx(exact, rel=0.1)


@BOTH
@pytest.mark.parametrize(("kl", "factor"), [(0.03, 2.0), (0.0151, 2.0), (0.0149, 1.0), (0.0067, 1.0), (0.0066, 0.5)])
def test_penalty_adapts_once_per_update_as_the_paper_has_it(kl: float, factor: float, kernel: bool) -> None:
    built = networks()
    settings = {"beta": 3.0, "dtarg": 0.01, "increment": 2.0, "decrement": 0.5}
    reference = minibatch_loss("loss=kl_ppo").model_copy(update=settings).build(built)
    loss = fast_loss(reference, built) if kernel else reference
    evaluated(loss, with_advantages(built, 2, 16), built)
    assert reference.coefficients["beta"].item() == 3.0
    loss.end_update({"kl": torch.tensor([kl - 0.001, kl + 0.001])})
    assert reference.coefficients["beta"].item() == 3.0 * factor


@pytest.mark.parametrize("policy", [[], ["policy=beta"], ["policy=gru", "policy.hidden_size=8"]], ids=" ".join)
@pytest.mark.parametrize("variant", ["bonus", "clipped_value", "normalized"])
def test_within_the_bounds_the_penalised_surrogate_is_torchrls(
    variant: str, policy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = networks(*policy)
    batch = with_advantages(built, 4, 64)
    # torchrl changes beta between a minibatch's loss and its gradient
    loss = loss_of("kl_ppo", built, VARIANTS[variant] | {"increment": 1.0, "decrement": 1.0}, kernel=False)
    losses, gradients = evaluated(loss, batch, built)
    del losses["beta"]
    monkeypatch.setattr(KLPenaltyLoss, "forward", KLPENPPOLoss.forward)
    expected, slopes = evaluated(loss, batch, built)
    torch.testing.assert_close(losses, expected)
    for found, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-6)


def test_rpo_disturbs_the_update_alone_and_its_kl_and_sample_size_are_those_of_the_policy() -> None:
    built = networks()
    batch = with_advantages(built, 2, 16)
    with torch.no_grad():
        batch["action_log_prob"] = built.actor.get_dist(batch).log_prob(batch["action"])
    plain = evaluated(loss_of("clip_ppo", built, {}, kernel=False), batch, built)[0]
    disturbed = evaluated(loss_of("rpo", built, {}, kernel=False), batch, built)[0]
    assert (disturbed["loss_objective"] - plain["loss_objective"]).abs() > 1e-3
    found = [disturbed[key].item() for key in ("kl", "kl_approx", "ESS")]
    assert found == pytest.approx([0, 0, 1], abs=1e-5)
    assert disturbed["max_ratio"] > 1.01


def test_rpo_needs_a_gaussian() -> None:
    with pytest.raises(ConfigError, match="mean of a Gaussian"):
        minibatch_loss("loss=rpo").build(networks("policy=beta"))
    with pytest.raises(UnsupportedError, match="RPOLoss"):
        fast_loss(minibatch_loss("loss=rpo").build(built := networks()), built)
