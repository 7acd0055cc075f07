"""Each loss against torchrl's module, values and gradients, and against the papers' formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import papers
import pytest
import torch
from agents import batch_of, gaussian_networks, networks
from rlexp.kernels.advantages import FastGAE
from tensordict import TensorDict
from torch.distributions import Categorical
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.objectives import A2CLoss, ClipPPOLoss, KLPENPPOLoss, ReinforceLoss

from rlexp import load_config
from rlexp.kernels.distributions import CategoricalFamily
from rlexp.kernels.losses import FastClipPPO, FastLoss, LeanKLPENPPOLoss
from rlexp.losses import PolicyLossConfig
from rlexp.policies import ActorCritic

THEIRS = {"clip_ppo": ClipPPOLoss, "kl_ppo": KLPENPPOLoss, "a2c": A2CLoss, "reinforce": ReinforceLoss}
OWN: dict[str, dict[str, Any]] = {
    "clip_ppo": {"clip_epsilon": 0.1},
    "kl_ppo": {"beta": 3.0, "dtarg": 0.03},
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


def built_loss(kind: str, built: ActorCritic, settings: dict[str, Any]) -> FastLoss:
    spec = load_config([f"loss={kind}"]).loss
    assert isinstance(spec, PolicyLossConfig)
    loss = spec.model_copy(update=settings).build_loss(built)
    assert isinstance(loss, FastLoss)
    return loss


def prepared(built: ActorCritic, *size: int) -> TensorDict:
    batch = batch_of(built, *size)
    FastGAE(built.critic, 0.99, 0.95, average=False)(batch)
    batch["state_value"] += 0.2 * torch.randn_like(batch["state_value"])  # the critic has learned since
    return batch.reshape(-1)


def with_gradients(loss: torch.nn.Module, batch: TensorDict, built: ActorCritic) -> tuple[dict[str, Any], list[Any]]:
    torch.manual_seed(2)  # the entropy is sampled
    losses = dict(loss(batch.clone()).items())
    total = sum(value for key, value in losses.items() if key.startswith("loss_"))
    assert isinstance(total, torch.Tensor)
    gradients = torch.autograd.grad(total, built.parameters())
    return {key: value.detach() for key, value in losses.items()}, list(gradients)


POLICIES: dict[str, list[str] | None] = {
    "default": [],
    "state_dependent": ["policy.state_independent_scale=false"],
    "relu": ["policy.num_cells=[32]", "policy.activation_class=ReLU"],
    "elu": ["policy.activation_class=ELU"],
    "unknown": None,
}


@pytest.mark.parametrize(
    ("variant", "name"), sorted({*((variant, "default") for variant in VARIANTS), *(("bonus", n) for n in POLICIES)})
)
@pytest.mark.parametrize("kind", THEIRS)
def test_loss_and_gradients_equal_torchrls(kind: str, variant: str, name: str) -> None:
    policy = POLICIES[name]
    settings = OWN[kind] | SHARED | VARIANTS[variant]
    if kind == "reinforce":
        settings |= {"critic_coeff": 1.0, "entropy_coeff": 0.0}  # torchrl's has neither
    built = gaussian_networks() if policy is None else networks(*policy)
    batch = prepared(built, 4, 64)
    lean, ours = with_gradients(built_loss(kind, built, settings), batch, built)
    normalize, options = settings["normalize_advantage"], dict(settings)
    if kind in ("a2c", "reinforce"):  # these two leave it to the estimator
        del options["normalize_advantage"]
        if normalize:
            batch["advantage"] = (batch["advantage"] - batch["advantage"].mean()) / batch["advantage"].std()
    if kind == "reinforce":
        options = {key: options[key] for key in ("loss_critic_type", "clip_value") if key in options}
    else:
        options["entropy_bonus"] = options["entropy_coeff"] > 0
    if kind == "kl_ppo":  # torchrl adapts beta before the gradient is taken, which then has the wrong one
        options |= {"increment": 1.0, "decrement": 1.0}
    theirs = THEIRS[kind](built.actor, built.critic, functional=False, **options)
    expected, by_torchrl = with_gradients(theirs, batch, built)
    if kind == "reinforce":
        expected = {"loss_objective": expected["loss_actor"], "loss_critic": expected["loss_value"]}
    assert {key for key in expected if key.startswith("loss_")} == {key for key in lean if key.startswith("loss_")}
    for key in lean.keys() & expected.keys():
        close = (lean[key], expected[key].mean())
        torch.testing.assert_close(*close, rtol=1e-4, atol=1e-5, msg=f"{key}: {close}")
    for a, b in zip(ours, by_torchrl, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


def moved(weights: list[papers.Array], direction: list[papers.Array], step: float) -> list[papers.Array]:
    return [w + step * d for w, d in zip(weights, direction, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", THEIRS)
def test_loss_and_slope_are_the_papers(kind: str, variant: str) -> None:
    settings = OWN[kind] | SHARED | {"entropy_coeff": 0.01} | VARIANTS[variant]
    built = networks()
    batch = prepared(built, 4, 64)
    batch["action"] = batch["action"].clamp(-0.99, 0.99)  # within the bounds the squashing has an inverse
    with torch.no_grad():
        batch["action_log_prob"] = built.actor.build_dist_from_params(batch).log_prob(batch["action"])
    lean, gradients = with_gradients(built_loss(kind, built, settings), batch, built)
    torch.manual_seed(2)
    noise = torch.randn(256, 3).double().numpy()
    weights = [parameter.detach().double().numpy() for parameter in built.parameters()]
    slopes = [gradient.double().numpy() for gradient in gradients]
    steps = {key: value.double().numpy() for key, value in batch.items() if key != "next"}
    ratio = np.exp((built.actor.get_dist(batch).log_prob(batch["action"]) - batch["action_log_prob"]).detach().numpy())
    assert (abs(ratio - 1) > 0.1).any()

    expected = papers.objective(weights, steps, kind, settings, noise)
    for key, value in expected.items():
        assert lean[key].item() == pytest.approx(value, rel=1e-4, abs=1e-5), key
    generator = np.random.default_rng(0)
    for _ in range(5):
        direction = [generator.standard_normal(w.shape) for w in weights]
        ahead, behind = (
            sum(papers.objective(moved(weights, direction, h), steps, kind, settings, noise).values())
            for h in (1e-6, -1e-6)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-3, abs=1e-3)


def test_without_bounds_or_penalty_clipped_and_penalised_are_one() -> None:
    built = networks()
    batch = prepared(built, 4, 64)
    clipped = with_gradients(FastClipPPO(built.actor, built.critic, clip_epsilon=1e6), batch, built)
    free = with_gradients(LeanKLPENPPOLoss(built.actor, built.critic, beta=0.0), batch, built)
    torch.testing.assert_close(clipped[0]["loss_objective"], free[0]["loss_objective"])
    for a, b in zip(clipped[1], free[1], strict=True):
        torch.testing.assert_close(a, b)


def test_on_policy_every_objective_has_the_policy_gradient() -> None:
    built = networks()
    batch = prepared(built, 4, 64)
    with torch.no_grad():
        now = built.actor.get_dist_params(batch.select("observation"))
        batch["loc"], batch["scale"] = now["loc"], now["scale"]
        batch["action_log_prob"] = built.actor.build_dist_from_params(batch).log_prob(batch["action"])
    gradients = [with_gradients(built_loss(kind, built, SHARED), batch, built)[1] for kind in THEIRS]
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_kl_of_squashed_gaussians_is_that_of_the_latent_ones_and_its_estimate_is_near() -> None:
    built = networks()
    torch.manual_seed(3)
    observation = torch.randn(1, 11).expand(200_000, 11)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        batch = built.actor(TensorDict({"observation": observation}, 200_000))
        batch["advantage"] = batch["value_target"] = torch.zeros(200_000, 1)
        for parameter in built.actor.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    loss = LeanKLPENPPOLoss(built.actor, built.critic)
    losses = loss(batch)
    now = built.actor.get_dist_params(batch.select("observation"))
    exact = papers.gaussian_kl(
        *(t[:1].detach().double().numpy() for t in (batch["loc"], batch["scale"], now["loc"], now["scale"]))
    ).item()
    assert losses["kl"].item() == pytest.approx(exact, rel=1e-3)
    log_prob = built.actor.get_dist(batch.select("observation")).log_prob(batch["action"])
    estimate = FastLoss.divergence(loss, {"log_weight": log_prob - batch["action_log_prob"]})
    assert estimate.item() == pytest.approx(exact, rel=0.05)


def test_kl_of_choices_is_torchs() -> None:
    old, new = torch.randn(5, 3), torch.randn(5, 3)
    expected = torch.distributions.kl_divergence(Categorical(logits=old), Categorical(logits=new))
    torch.testing.assert_close(CategoricalFamily().kl((old,), (new,)), expected)


@pytest.mark.parametrize(("kl", "factor"), [(0.03, 2.0), (0.0151, 2.0), (0.0149, 1.0), (0.0067, 1.0), (0.0066, 0.5)])
def test_penalty_adapts_as_the_paper_has_it(kl: float, factor: float) -> None:
    built = networks()
    loss = LeanKLPENPPOLoss(built.actor, built.critic, beta=3.0, dtarg=0.01)
    loss.adapt({"kl": torch.tensor([kl - 0.001, kl + 0.001])})
    assert loss.coefficients["beta"].item() == 3.0 * factor


def test_options_hand_torchrls_names_on() -> None:
    for kind in THEIRS:
        assert load_config([f"loss={kind}"]).loss.builds[0].endswith(f".{THEIRS[kind].__name__}")
