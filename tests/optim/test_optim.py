"""Optimizers over one vector of weights, two learning rates, and the schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.optim import OptimConfig
from rlexp.optim.schedules import KLAdaptive
from rlexp.optim.weights import flatten

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-5}),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
}


def layers() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """An actor's parameters and a critic's."""
    torch.manual_seed(0)
    return list(nn.Linear(3, 4).parameters()), list(nn.Linear(2, 5).parameters())


@pytest.mark.parametrize("critic_lr", [None, 0.003])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_vector_takes_the_steps_of_many_parameters(name: str, critic_lr: float | None) -> None:
    spec = load_config([f"optim={name}", "optim.lr=0.01", f"optim.critic_lr={critic_lr or 'null'}"]).optim
    assert spec.elementwise
    actor, critic = layers()
    flat = flatten([*actor, *critic])
    optimizer, _ = spec.build(flat, actor, critic, 10)
    kind, options = OPTIMIZERS[name]
    actor_alone, critic_alone = layers()
    groups = [{"params": actor_alone}, {"params": critic_alone, "lr": critic_lr or 0.01}]
    alone = kind(groups, lr=0.01, **options)
    for _ in range(5):
        for ours, theirs in zip([*actor, *critic], [*actor_alone, *critic_alone], strict=True):
            assert ours.grad is not None
            ours.grad.copy_(torch.randn_like(ours))
            theirs.grad = ours.grad.clone()
        optimizer.step()
        alone.step()
    for ours, theirs in zip([*actor, *critic], [*actor_alone, *critic_alone], strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in [*actor, *critic]]), flat.detach())


def test_what_actor_and_critic_share_is_the_actors() -> None:
    actor, critic = layers()
    spec = load_config(["optim=any", "optim.optimizer._target_=torch.optim.SGD", "optim.critic_lr=0.5"]).optim
    optimizer, _ = spec.build(flatten([*actor, *critic]), actor, critic, 10)
    rates = [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    assert rates == [(7e-4, 2), (0.5, 2)]
    with pytest.raises(ConfigError, match="no parameters of its own"):
        spec.build(flatten(actor), actor, [], 10)


def test_gradients_are_clipped_over_actor_and_critic(tmp_path: Path) -> None:
    small = ["logger=none", "env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=64", "num_epochs=1"]
    sgd = ["optim=sgd", "optim.momentum=0", "optim.lr=1.0", "optim.critic_lr=0.5", "max_grad_norm=0.01"]
    trainer = Trainer.from_config(load_config([*small, *sgd]), tmp_path)
    before = trainer.learner.weights.detach().clone()
    metrics = trainer.update(trainer.collect())
    trainer.close()
    assert metrics["optim/grad_norm"] > 0.01
    step = trainer.learner.weights.detach() - before
    step[sum(parameter.numel() for parameter in trainer.networks.actor.parameters()) :] /= 0.5
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_rate_follows_the_kl() -> None:
    actor, critic = layers()
    spec = load_config(["optim.lr=4e-3", "optim.critic_lr=1e-3", "optim.schedule=kl_adaptive"]).optim
    optimizer, schedule = spec.build(flatten([*actor, *critic]), actor, critic, 10)
    assert isinstance(schedule, KLAdaptive)

    def rates(*kls: float) -> list[Any]:
        for kl in kls:
            schedule.adapt(kl)
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        return schedule.get_last_lr()

    assert rates(0.019, 0.0051) == [4e-3, 1e-3]
    assert rates(0.021) == pytest.approx([4e-3 / 1.5, 1e-3 / 1.5])
    assert rates(0.0049, 0.001) == pytest.approx([6e-3, 1.5e-3])
    assert rates(*[0.001] * 20) == [1e-2, 1e-2]
    assert rates(*[1.0] * 30) == [1e-5, 1e-5]
    assert rates(0.0) == [1e-5, 1e-5]


def test_a_rate_beyond_the_bounds_is_not_pulled_in() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = KLAdaptive(optimizer)
    schedule.adapt(0.0001)
    assert optimizer.param_groups[0]["lr"] == 0.1
    schedule.adapt(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 1.5)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match="needs momentum"):
        load_config(["optim=sgd", "optim.nesterov=true", "optim.momentum=0"])
    assert isinstance(load_config(["optim=sgd", "optim.nesterov=true"]).optim, OptimConfig)
