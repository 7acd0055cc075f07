"""Schedulers whose step needs an argument, and minibatches of one advantage, are refused before training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rlexp.config import ConfigError, check_targets
from rlexp.experiment import load_config

_NAME = f"{__name__}"


def plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer)


class Fed:
    """A scheduler of one's own that must be given two things."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, value: float, *, frames: int) -> None:
        raise AssertionError


@pytest.mark.parametrize("target", ["torch.optim.lr_scheduler.ReduceLROnPlateau", f"{_NAME}.Fed"])
def test_a_scheduler_whose_step_needs_an_argument_is_refused(target: str) -> None:
    config = load_config([f"optim.schedule={{_target_: {target}}}", "logger=none"])
    with pytest.raises(ConfigError, match=r"optim\.schedule\._target_.*\n.*step needs an argument"):
        check_targets(config)


def test_so_is_one_that_a_function_makes(tmp_path: Path) -> None:
    config = load_config([f"optim.schedule={{_target_: {_NAME}.plateau}}", "logger=none"])
    check_targets(config)
    weights = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"optim\.schedule\._target_.*\n.*step needs an argument \(metrics\)"):
        config.optim.build(weights, [weights], [weights], 3)


@pytest.mark.parametrize(
    "name", ["StepLR, step_size: 2", "ExponentialLR, gamma: 0.9", "OneCycleLR, max_lr: 1, total_steps: 9"]
)
def test_others_step_once_per_batch(name: str) -> None:
    config = load_config([f"optim.schedule={{_target_: torch.optim.lr_scheduler.{name}}}", "logger=none"])
    check_targets(config)
    weights = torch.nn.Parameter(torch.zeros(2))
    optimizer, schedule = config.optim.build(weights, [weights], [], 3)
    optimizer.step()
    schedule.step()


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.normalize_advantage=true"],
        ["loss=a2c", "loss.normalize_advantage=true"],
        ["loss=any", "loss.loss_module={_target_: torchrl.objectives.ClipPPOLoss, normalize_advantage: true}"],
    ],
)
def test_one_advantage_has_no_standard_deviation(overrides: list[str]) -> None:
    common = ["env=pendulum", "logger=none", *overrides]
    with pytest.raises(ConfigError, match=r"minibatch_size=1\n.*normalize_advantage"):
        load_config([*common, "minibatch_size=1"])
    assert load_config([*common, "minibatch_size=2"]).minibatch_size == 2
    assert torch.tensor([1.0]).std().isnan()


def test_without_normalisation_one_step_will_do() -> None:
    config = load_config(["env=pendulum", "logger=none", "loss.normalize_advantage=false", "minibatch_size=1"])
    assert config.minibatch_size == 1
