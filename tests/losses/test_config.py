"""What the losses' configs build, and how their coefficients are annealed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from agents import minibatch_loss, networks
from torchrl.objectives import A2CLoss, ClipPPOLoss

from rlexp.losses.config.base import Annealed
from rlexp.losses.kl_penalty import KLPenaltyLoss


@pytest.mark.parametrize(
    ("kind", "module"),
    [("clip_ppo", ClipPPOLoss), ("kl_ppo", KLPenaltyLoss), ("a2c", A2CLoss), ("reinforce", A2CLoss)],
)
def test_settings_reach_torchrls_module(kind: str, module: type) -> None:
    settings = ["loss.entropy_coeff=0.02", "loss.critic_coeff=0.3", "loss.loss_critic_type=l1", "loss.clip_value=0.7"]
    own = {"clip_ppo": {"clip_epsilon": 0.15}, "kl_ppo": {"beta": 0.7, "dtarg": 0.03}}.get(kind, {})
    overrides = [f"loss={kind}", *settings, *(f"loss.{name}={value}" for name, value in own.items())]
    loss = minibatch_loss(*overrides).build(networks())
    assert type(loss.module) is module
    built: Any = loss.module
    found = {name: value.item() for name, value in loss.coefficients.items()}
    expected = {"entropy_coeff": 0.02, "critic_coeff": 0.3, "clip_value": 0.7} | own
    assert found.items() >= {key: pytest.approx(value) for key, value in expected.items() if key != "dtarg"}.items()
    assert built.loss_critic_type == "l1"
    assert built.entropy_bonus
    if kind == "kl_ppo":
        assert built.dtarg == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("schedule", "halfway", "three_quarters"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 0.25), ("cosine", 0.5, (1 - math.sqrt(0.5)) / 2)],
)
def test_annealing(schedule: Any, halfway: float, three_quarters: float) -> None:
    found = [Annealed(3.0, schedule).at(progress) for progress in (0.0, 0.5, 0.75)]
    assert found == pytest.approx([3.0, 3.0 * halfway, 3.0 * three_quarters])


def test_what_is_annealed_is_named_as_in_the_module() -> None:
    for kind in ("clip_ppo", "kl_ppo", "a2c", "reinforce"):
        config = minibatch_loss(f"loss={kind}", "loss.entropy_coeff=0.01")
        assert config.annealed().keys() <= config.build(networks()).coefficients.keys()
        assert config.annealed()["entropy_coeff"].start == 0.01
    assert minibatch_loss().annealed()["clip_epsilon"].start == pytest.approx(0.2)
