"""The distillation loss against its formulas in float64, values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from agents import batch_of, networks
from tensordict import TensorDict
from torch import Tensor

from rlexp.experiment import load_config
from rlexp.losses import DistillConfig
from rlexp.losses.distill import TEACHER
from rlexp.losses.module import Loss
from rlexp.policies import ActorCritic

GRU = ["policy=gru", "policy.sequence_length=4", "policy.hidden_size=6", "policy.num_cells=[6]"]


@functools.cache
def config(distance: str) -> DistillConfig:
    found = load_config(["loss=distill", "loss.teacher=.", f"loss.distance={distance}", "loss.critic_coeff=0.3"]).loss
    assert isinstance(found, DistillConfig)
    return found


def labelled(built: ActorCritic, distance: str) -> tuple[Loss, TensorDict, dict[str, Tensor]]:
    """A loss, a batch ``[3, 8]`` with a teacher's parameters, and the student's own in float64."""
    batch = batch_of(built, 3, 8)
    batch["value_target"], batch["advantage"] = torch.randn(3, 8, 1), torch.zeros(3, 8, 1)
    batch["state_value"] = torch.zeros(3, 8, 1)
    with torch.no_grad():
        now = built.actor.get_dist_params(batch.select(*built.actor.in_keys))
        own = {str(key): now[key].double() for key in built.actor.dist_params_keys}
        teacher = {key: value.float() * (1 + 0.5 * torch.rand_like(value.float())) for key, value in own.items()}
        said = built.actor.build_dist_from_params(TensorDict(teacher, [3, 8]))
        for key, value in teacher.items():
            batch[TEACHER + key] = value
        if distance == "l2":
            batch[f"{TEACHER}action"] = said.deterministic_sample
    return config(distance).build(built), batch, own


def evaluated(loss: Loss, batch: TensorDict) -> dict[str, Tensor]:
    return loss.losses({key: batch[key].flatten(0, 1) for key in loss.keys})


def gaussian_kl(batch: TensorDict, own: dict[str, Tensor]) -> Tensor:
    loc, scale = (batch[TEACHER + key].double() for key in ("loc", "scale"))
    ratio, shift = scale / own["scale"], (loc - own["loc"]) / own["scale"]
    kl: Tensor = (0.5 * (ratio**2 + shift**2 - 1) - ratio.log()).sum(-1).mean()
    return kl


def categorical_kl(batch: TensorDict, own: dict[str, Tensor]) -> Tensor:
    teacher, student = (torch.log_softmax(x.double(), -1) for x in (batch[f"{TEACHER}logits"], own["logits"]))
    kl: Tensor = (teacher.exp() * (teacher - student)).sum(-1).mean()
    return kl


def squared(batch: TensorDict, own: dict[str, Tensor]) -> Tensor:
    """Of squashed means; hopper's actions are within -1 and 1."""
    error: Tensor = own["loc"].tanh() - batch[f"{TEACHER}loc"].double().tanh()
    return error.square().mean()


@pytest.mark.parametrize(
    ("distance", "env", "policy", "expected"),
    [
        ("kl", "hopper", ["policy=normal"], gaussian_kl),
        ("kl", "hopper", ["policy=tanh_normal"], gaussian_kl),
        ("kl", "cartpole", ["policy=categorical"], categorical_kl),
        ("l2", "hopper", ["policy=tanh_normal"], squared),
        ("l2", "hopper", GRU, squared),
        ("kl", "hopper", GRU, gaussian_kl),
    ],
    ids=["normal", "tanh_normal", "categorical", "l2", "l2, gru", "gru"],
)
def test_it_is_the_distance_of_the_formula_and_the_critics_loss(
    distance: str, env: str, policy: list[str], expected: Callable[[TensorDict, dict[str, Tensor]], Tensor]
) -> None:
    built = networks(*policy, env=env)
    loss, batch, own = labelled(built, distance)
    found = evaluated(loss, batch)
    steps = batch.reshape(-1, built.sequence_length) if built.sequence_length > 1 else batch.reshape(-1)
    with torch.no_grad():
        value = built.critic(steps)["state_value"].flatten().double()
        log_ratio = (built.actor.get_dist(steps).log_prob(steps["action"]) - steps["action_log_prob"]).double()
    assert found["loss_objective"].item() == pytest.approx(expected(batch, own).item(), rel=1e-4)
    critic = 0.3 * (value - batch["value_target"].flatten()).square().mean()
    assert found["loss_critic"].item() == pytest.approx(critic.item(), rel=1e-4)
    assert found["kl"].item() == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-3, abs=1e-6)


def test_its_gradient_is_that_of_the_cross_entropy() -> None:
    built = networks("policy=categorical", env="cartpole")
    loss, batch, _ = labelled(built, "kl")
    actor = list(built.actor.parameters())
    found = torch.autograd.grad(evaluated(loss, batch)["loss_objective"], actor)
    logits = built.actor.get_dist_params(batch.reshape(-1).select(*built.actor.in_keys))["logits"]
    probabilities = batch[f"{TEACHER}logits"].flatten(0, 1).softmax(-1)
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, probabilities), actor)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert max(np.abs(ours.numpy()).max() for ours in found) > 1e-3


def test_with_weight_0_the_critic_has_no_loss() -> None:
    built = networks("policy=normal")
    _, batch, _ = labelled(built, "kl")
    loss = config("kl").model_copy(update={"critic_coeff": 0.0}).build(built)
    assert "loss_critic" not in evaluated(loss, batch)
