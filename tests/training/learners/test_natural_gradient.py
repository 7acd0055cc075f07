"""The natural gradient against the paper's formulas in float64, with the Fisher matrix written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.policies.heads import both_ways
from rlexp.runs import checkpoint
from rlexp.training.learners import NaturalGradientLearner
from rlexp.training.learners.natural_gradient import conjugate_gradients, fisher_product, flat_gradient

SMALL = [
    *("env=gym", "env.id=Pendulum-v1", "env.num_envs=2", "env.init_random_steps=20", "env.num_workers=1"),
    *("collector.frames_per_batch=64", "minibatch_size=16", "num_epochs=2", "total_frames=256", "policy.num_cells=[5]"),
    *("evaluation.episodes=1", "evaluation.interval=1000", "checkpoint.interval=64", "logger=none", "threads=1"),
]


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    return Trainer.from_config(load_config([*SMALL, *overrides]), folder)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_unknowns(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    matrix, target = root @ root.T + 0.5 * np.eye(size), rng.standard_normal(size)
    found = conjugate_gradients(lambda v: torch.from_numpy(matrix) @ v, torch.from_numpy(target), 2 * size, 1e-24)
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(matrix, target), rtol=1e-6, atol=1e-8)


def written_out(actor: Any, observation: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A Gaussian MLP actor in float64: means of given parameters, the parameters, and the standard deviation."""
    network = actor.module[0].module
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    scale = dict(network.named_parameters())["1.state_independent_scale"].detach().double()
    parameters = [p.detach().double() for p in actor.parameters()]
    order = [id(p) for p in actor.parameters()]
    wanted = [[order.index(id(layer.weight)), order.index(id(layer.bias))] for layer in layers]
    sizes = [p.numel() for p in parameters]

    def means(vector: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]
        x = observation.double()
        for i, (weight, bias) in enumerate(wanted):
            x = x @ parts[weight].T + parts[bias]
            x = x.tanh() if i < len(wanted) - 1 else x
        return x

    return means, torch.cat([p.reshape(-1) for p in parameters]), scale.exp()


def exact_fisher(actor: Any, observation: Tensor) -> Tensor:
    r"""$J^\top \Sigma^{-1} J$ of the means, averaged over observations, and 2 for each logarithm of a deviation."""
    means, vector, sigma = written_out(actor, observation)
    jacobian = torch.autograd.functional.jacobian(means, vector)
    fisher = torch.einsum("nap,naq,a->pq", jacobian, jacobian, sigma**-2) / len(observation)
    start = 0
    for name, parameter in actor.named_parameters():
        if name.endswith("state_independent_scale"):
            for i in range(parameter.numel()):
                fisher[start + i, start + i] += 2
        start += parameter.numel()
    return fisher


def test_a_parameter_that_nothing_depends_on_has_no_gradient() -> None:
    used, unused = (torch.nn.Parameter(torch.tensor(values)) for values in ([1.0, 3.0], [5.0]))
    first = flat_gradient(used.pow(3).sum(), [used, unused], create_graph=True)
    assert first.tolist() == [3, 27, 0]
    assert flat_gradient(first.sum(), [used, unused]).tolist() == [6, 18, 0]


@pytest.mark.parametrize("lower_bound", [1e-4, 1.0], ids=["free", "at_the_bound"])
@pytest.mark.parametrize("policy", ["normal", "tanh_normal"])
def test_fisher_products_are_those_of_the_written_out_matrix(tmp_path: Path, policy: str, lower_bound: float) -> None:
    trainer = trainer_of(tmp_path, "loss=npg", f"policy={policy}", f"policy.scale_lb={lower_bound}")
    learner, actor = trainer.learner, trainer.networks.actor
    assert isinstance(learner, NaturalGradientLearner)
    observation = torch.randn(20, 3)
    steps = {"observation": observation}
    with both_ways():
        policy_now = actor.get_dist(_tensordict(steps))
    with torch.no_grad():
        before = actor.get_dist(_tensordict(steps))
    products = [fisher_product(before, policy_now, list(actor.parameters()), damping=0.1)]
    assert (learner._fisher is not None) == (policy == "normal")
    if learner._fisher is not None:
        products.append(learner._fisher(_tensordict(steps), 0.1))
    expected = exact_fisher(actor, observation) + 0.1 * torch.eye(sum(p.numel() for p in actor.parameters())).double()
    for product in products:
        vector = torch.randn(len(expected))
        torch.testing.assert_close(product(vector).double(), expected @ vector.double(), rtol=1e-4, atol=1e-5)
    trainer.close()


@pytest.mark.parametrize(
    "policy",
    [
        ["policy.activation_class=ReLU", "policy.num_cells=[8,6,4]", "policy.scale_init=0.4"],
        ["policy.scale_mapping=biased_softplus_0.5", "policy.scale_lb=0.3"],
    ],
)
def test_the_kernel_differentiates_as_autograd_does(tmp_path: Path, policy: list[str]) -> None:
    trainer = trainer_of(tmp_path, "loss=npg", "policy=normal", *policy)
    learner, actor = trainer.learner, trainer.networks.actor
    assert isinstance(learner, NaturalGradientLearner)
    assert learner._fisher is not None
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    steps = _tensordict({"observation": torch.randn(20, 3)})
    with torch.no_grad():
        before = actor.get_dist(steps)
    parameters = list(actor.parameters())
    reference = fisher_product(before, actor.get_dist(steps), parameters, damping=0.1)
    vector = torch.randn(sum(p.numel() for p in parameters))
    torch.testing.assert_close(learner._fisher(steps, 0.1)(vector), reference(vector), rtol=1e-4, atol=1e-5)
    trainer.close()


def _tensordict(entries: dict[str, Tensor]) -> TensorDictBase:
    from tensordict import TensorDict

    return TensorDict(entries, [len(next(iter(entries.values())))])


def test_the_step_is_the_papers(tmp_path: Path) -> None:
    """Appendix C: the direction solves with the exact matrix, and its length gives the KL that was asked for."""
    trainer = trainer_of(tmp_path, "loss=npg", "policy=normal", "loss.max_kl=0.003", "loss.cg_iterations=60")
    learner = trainer.learner
    assert isinstance(learner, NaturalGradientLearner)
    actor = trainer.networks.actor
    batch = trainer.collect()
    learner.advantage(batch)
    steps = batch.reshape(-1)
    before = torch.cat([p.detach().reshape(-1) for p in actor.parameters()]).double()

    advantage = steps["advantage"][:, 0].double()
    advantage = (advantage - advantage.mean()) / advantage.std()
    means, _, _ = written_out(actor, steps["observation"])
    index = [name.endswith("state_independent_scale") for name, _ in actor.named_parameters()].index(True)
    sizes = [p.numel() for p in actor.parameters()]
    vector = before.clone().requires_grad_()
    deviation = vector.split(sizes)[index].exp()
    z = (steps["action"].double() - means(vector)) / deviation
    log_prob = (-0.5 * z**2 - deviation.log() - 0.5 * np.log(2 * np.pi)).sum(-1)
    surrogate = ((log_prob - steps["action_log_prob"].double()).exp() * advantage).mean()
    (gradient,) = torch.autograd.grad(surrogate, vector)
    matrix = exact_fisher(actor, steps["observation"]) + 0.1 * torch.eye(len(before)).double()
    direction = torch.linalg.solve(matrix, gradient)
    expected = direction * (2 * 0.003 / (direction @ matrix @ direction)).sqrt()

    metrics = learner._improve_policy(steps, 0.003)
    after = torch.cat([p.detach().reshape(-1) for p in actor.parameters()]).double()
    assert metrics["loss/objective"] == pytest.approx(-surrogate.item(), abs=1e-5)
    torch.testing.assert_close(after - before, expected, rtol=2e-2, atol=2e-5)
    # The damping takes a share of the quadratic form, so that the KL is below what was asked for.
    assert 0 < metrics["loss/kl"] < 0.0031
    trainer.close()


def test_the_line_search_keeps_to_the_kl_and_takes_no_step_that_does_not_help(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "loss=trpo", "policy=normal", "loss.max_kl=0.02", "loss.damping=0")
    learner = trainer.learner
    assert isinstance(learner, NaturalGradientLearner)
    for _ in range(3):
        metrics = trainer.update(trainer.collect())
        assert metrics["loss/kl"] <= 0.02
        assert any(metrics["loss/step_fraction"] == pytest.approx(f) for f in (0, *(0.8**i for i in range(10))))
    batch = trainer.collect()
    learner.advantage(batch)
    batch["advantage"].zero_()  # no direction is better than another
    before = [p.detach().clone() for p in trainer.networks.actor.parameters()]
    metrics = learner._improve_policy(batch.reshape(-1), 0.02)
    assert (metrics["loss/step_fraction"], metrics["loss/kl"]) == (0.0, 0.0)
    for parameter, saved in zip(trainer.networks.actor.parameters(), before, strict=True):
        assert torch.equal(parameter, saved)
    trainer.close()


@pytest.mark.parametrize("kernels", ["auto", "false"])
@pytest.mark.parametrize("wider", [True, False])
def test_a_deviation_at_its_lower_bound_rises_and_does_not_fall(wider: bool, kernels: str, tmp_path: Path) -> None:
    options = ["loss=trpo", "policy=normal", "policy.scale_init=0.5", "policy.scale_lb=0.5", f"kernels={kernels}"]
    trainer = trainer_of(tmp_path, *options)
    learner = trainer.learner
    assert isinstance(learner, NaturalGradientLearner)
    scale = dict(trainer.networks.actor.named_parameters())["module.0.module.1.state_independent_scale"]
    with torch.no_grad():
        scale.fill_(np.log(0.499))
    steps = trainer.collect().reshape(-1)
    with torch.no_grad():
        far = (steps["action"] - trainer.networks.actor.get_dist(steps).mean).square().mean(-1, keepdim=True)
    steps["advantage"] = far if wider else -far
    rows = [learner._improve_policy(steps, 0.01) for _ in range(3)]
    trainer.close()
    if wider:
        assert scale.exp().item() > 0.51
        assert [row["loss/step_fraction"] for row in rows] == [1, 1, 1]  # none of them goes beyond its KL
    else:
        assert scale.exp().item() == pytest.approx(0.499, abs=1e-4)


def test_the_step_is_annealed_over_the_run(tmp_path: Path) -> None:
    steps = []
    for progress in (0.0, 0.75):
        options = ["loss=npg", "policy=normal", "loss.max_kl=0.004", "loss.kl_schedule=linear"]
        trainer = trainer_of(tmp_path / f"{progress}", *options)
        steps.append(trainer.learner.update(trainer.collect(), progress)["loss/kl"])
        trainer.close()
    assert steps[1] == pytest.approx(steps[0] / 4, rel=0.1)


def test_the_critic_is_fitted_and_the_policy_is_not_touched_by_it(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "loss=npg", "policy=normal", "num_epochs=60", "optim.lr=1e-2")
    learner = trainer.learner
    assert isinstance(learner, NaturalGradientLearner)
    batch = trainer.collect()
    learner.advantage(batch)
    actor = [p.detach().clone() for p in trainer.networks.actor.parameters()]
    before = (batch["state_value"] - batch["value_target"]).square().mean()
    learner.critic.fit(batch)
    fitted = trainer.networks.critic.module(batch["observation"])
    assert (fitted - batch["value_target"]).square().mean() < 0.7 * before
    for parameter, saved in zip(trainer.networks.actor.parameters(), actor, strict=True):
        assert torch.equal(parameter, saved)
    trainer.close()


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=trpo", "loss.normalize_value=true", "loss.normalize_reward=false"],
        ["loss=npg", "env.id=CartPole-v1", "policy=categorical"],
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path, overrides: list[str]) -> None:
    whole = trainer_of(tmp_path / "whole", *overrides)
    rows = list(whole)
    expected = whole.learner.weights.detach().clone()
    whole.close()
    part = trainer_of(tmp_path / "part", *overrides)
    part.iterate()
    part.iterate()
    part.save()
    part.close()
    resumed = Trainer.resume(tmp_path / "part")
    assert list(resumed) == rows[2:]
    assert torch.equal(resumed.learner.weights, expected)
    resumed.close()
    assert not checkpoint.load(tmp_path / "part").state.inexact


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["policy=gru"], "loss"),
        (["policy.shared=true"], "policy.shared"),
        (["target_kl=0.01"], "target_kl"),
        (["optim.critic_lr=1e-3"], "optim.critic_lr"),
        (["critic_num_epochs=3"], "critic_num_epochs"),
        (["policy.scale_ub=1.0"], "policy.scale_ub"),
        (["optim.schedule=kl_adaptive"], "optim.schedule"),
        (["compile=true"], "compile"),
    ],
)
def test_what_has_no_meaning_for_a_natural_gradient_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([*SMALL, "loss=trpo", *overrides])
    assert [problem.key for problem in error.value.problems] == [key]
