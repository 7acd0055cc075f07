"""REPPO against the paper's formulas, each computed on its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import TanhTransform

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.policies.action_values import ActionValue, Bins
from rlexp.training.learners import REPPOLearner
from rlexp.training.learners.reppo import gaussian_kl, log_prob

SMALL = [
    *("env=gym", "env.id=Pendulum-v1", "env.num_envs=2", "env.init_random_steps=20", "env.num_workers=1"),
    *("collector.frames_per_batch=64", "minibatch_size=16", "num_epochs=2", "total_frames=256", "policy.num_cells=[8]"),
    *("evaluation.episodes=1", "evaluation.interval=1000", "checkpoint.interval=64", "logger=none", "threads=1"),
    "loss=reppo",
]


def trainer_of(folder: Path, *overrides: str) -> tuple[Trainer, REPPOLearner]:
    trainer = Trainer.from_config(load_config([*SMALL, *overrides]), folder)
    return trainer, cast("REPPOLearner", trainer.learner)


@given(st.floats(-19, 19), st.integers(100, 300))
def test_a_value_is_the_mean_of_its_distribution(value: float, count: int) -> None:
    bins = Bins(-20.0, 20.0, count).double()
    found = bins.probabilities(torch.tensor(value, dtype=torch.float64))
    width, sigma = 40 / count, 0.75 * 40 / count
    edges = -20 + width * np.arange(count + 1)
    below = np.array([0.5 * (1 + math.erf((edge - value) / sigma / 2**0.5)) for edge in edges])
    np.testing.assert_allclose(found.numpy(), np.diff(below) / (below[-1] - below[0]), atol=1e-5)
    assert found.sum().item() == pytest.approx(1)
    assert bins.mean(found.log()).item() == pytest.approx(value, abs=0.02 * width)


def test_values_beyond_the_bins_are_taken_for_their_ends() -> None:
    bins = Bins(-1.0, 1.0, 20)
    beyond = bins.probabilities(torch.tensor([-50.0, 50.0]))
    torch.testing.assert_close(beyond, bins.probabilities(torch.tensor([-1.0, 1.0])))
    assert beyond.isfinite().all()


def test_densities_and_divergences_are_torchs() -> None:
    torch.manual_seed(0)
    loc, old_loc, latent = torch.randn(3, 40, 5, dtype=torch.float64)
    scale, old_scale = torch.rand(2, 40, 5, dtype=torch.float64) + 0.1
    normal, old = (Independent(Normal(m, s), 1) for m, s in ((loc, scale), (old_loc, old_scale)))
    squashed = TransformedDistribution(Independent(Normal(loc, scale), 1), [TanhTransform()])
    torch.testing.assert_close(log_prob(latent, loc, scale), squashed.log_prob(latent.tanh()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gaussian_kl((old_loc, old_scale), (loc, scale)), kl_divergence(old, normal))
    far = torch.tensor([[30.0]])  # where 1 - tanh(x)^2 is 0 in floating point
    assert log_prob(far, far, torch.ones(1, 1)).item() == pytest.approx(60 - math.log(4) - 0.5 * math.log(2 * math.pi))


def test_the_actors_distribution_is_that_of_the_actions(tmp_path: Path) -> None:
    """The Gaussian before squashing, as the learner has it from the network, is the one that actions are drawn from."""
    trainer, learner = trainer_of(tmp_path)
    batch = trainer.collect()
    loc, scale = learner.parameters(batch)
    torch.testing.assert_close(batch["loc"], loc)
    latent = learner.critic.squashed(batch["action"]).atanh()
    bounds = torch.tensor(2.0).log()  # Pendulum's actions are twice the squashed ones
    torch.testing.assert_close(log_prob(latent, loc, scale) - bounds, batch["action_log_prob"], rtol=1e-3, atol=1e-3)
    trainer.close()


def returns_by_hand(learner: REPPOLearner, batch: TensorDictBase, noise: Tensor) -> Tensor:
    gamma, lmbda, alpha = learner.loss.gamma, learner.loss.lmbda, learner.multipliers[0].exp().item()
    after = batch["next"]
    found = torch.zeros(batch.shape, dtype=torch.float64)
    for env in range(batch.shape[0]):
        following = 0.0
        for t in reversed(range(batch.shape[1])):
            step = after[env : env + 1, t]
            loc, scale = learner.parameters(step)
            latent = loc + scale * noise[env, t]
            value = learner.networks.critic(step["observation"], 2 * latent.tanh()).item()
            bonus = -alpha * log_prob(latent, loc, scale).item()
            reward, last = step["reward"].item(), t == batch.shape[1] - 1
            if step["terminated"].item():
                following = reward
            elif step["done"].item() or last:
                following = reward + gamma * (bonus + value)
            else:
                following = reward + gamma * (bonus + (1 - lmbda) * value + lmbda * following)
            found[env, t] = following
    return found


@pytest.mark.parametrize("lmbda", [0, 0.9, 1])
def test_targets_are_the_returns_computed_step_by_step(tmp_path: Path, lmbda: float) -> None:
    trainer, learner = trainer_of(tmp_path, f"loss.lmbda={lmbda}", "loss.gamma=0.9", "loss.alpha=0.3")
    batch = trainer.collect()
    done, terminated = torch.rand(2, *batch.shape, 1) < torch.tensor([0.2, 0.4])[:, None, None, None]
    batch["next", "done"], batch["next", "terminated"] = done, done & terminated
    assert (done & ~terminated).any()
    assert (done & terminated).any()
    torch.manual_seed(3)
    noise = torch.randn(*batch.shape, 1)
    torch.manual_seed(3)
    outside = learner.targets(batch)
    with torch.no_grad():
        expected = returns_by_hand(learner, batch, noise)
    torch.testing.assert_close(batch["value_target"][..., 0].double(), expected, rtol=1e-4, atol=1e-4)
    bins = learner.critic.bins
    assert outside == ((expected < bins.low) | (expected > bins.high)).double().mean().item()
    trainer.close()


def minibatch_of(trainer: Trainer, learner: REPPOLearner) -> dict[str, Tensor]:
    batch = trainer.collect()
    learner.targets(batch)
    keys = ("observation", "action", "loc", "scale", "value_target", "next_features")
    return {key: batch[key].flatten(0, 1) for key in keys}


def test_the_critics_step_follows_the_cross_entropy_and_its_prediction(tmp_path: Path) -> None:
    settings = ["optim=sgd", "optim.lr=1", "max_grad_norm=1e9", "loss.embedding_coeff=0.7"]
    trainer, learner = trainer_of(tmp_path, *settings)
    minibatch = minibatch_of(trainer, learner)
    critic, before = learner.critic, [p.detach().clone() for p in learner.networks.critic.parameters()]
    features = critic.trunk(torch.cat([minibatch["observation"], minibatch["action"] / 2], -1))
    log_probability = critic.value_head(features).log_softmax(-1)
    wanted = critic.bins.probabilities(minibatch["value_target"][:, 0])
    loss = -(wanted * log_probability).sum(-1).mean()
    loss = loss + 0.7 * ((critic.predictor(features) - minibatch["next_features"]) ** 2).mean()
    gradients = torch.autograd.grad(loss, list(learner.networks.critic.parameters()))
    actor = [p.detach().clone() for p in learner.networks.actor.parameters()]
    learner.critic_step(minibatch)
    torch.testing.assert_close(list(learner.networks.actor.parameters()), actor, rtol=0, atol=0)
    for parameter, start, gradient in zip(learner.networks.critic.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter, start - gradient, rtol=1e-4, atol=1e-6)
    trainer.close()


@pytest.mark.parametrize("max_kl", [0.02, 1e-9, 1e9])
def test_the_policys_step_climbs_the_critic_where_it_is_near_and_leads_back_elsewhere(
    tmp_path: Path, max_kl: float
) -> None:
    settings = [
        "optim=sgd",
        "optim.lr=0.1",
        "max_grad_norm=1e9",
        f"loss.max_kl={max_kl}",
        "loss.beta=0.5",
    ]
    trainer, learner = trainer_of(tmp_path, *settings)
    minibatch = minibatch_of(trainer, learner)
    parameters = list(learner.networks.actor.parameters())
    with torch.no_grad():
        for parameter in parameters:  # away from the policy that acted
            parameter.add_(0.05 * torch.randn_like(parameter))
    before, critic = ([p.detach().clone() for p in ps] for ps in (parameters, learner.networks.critic.parameters()))
    alpha, beta = learner.multipliers.detach().exp().tolist()
    torch.manual_seed(5)
    noise = torch.randn(64, 1)
    policy = learner.networks.actor.get_dist(TensorDict({"observation": minibatch["observation"]}, [64]))
    loc, scale = learner.parameters(minibatch)
    action = (loc + scale * noise).tanh()
    log_density = policy.log_prob(2 * action) + math.log(2)
    kl = kl_divergence(Independent(Normal(minibatch["loc"], minibatch["scale"]), 1), Independent(Normal(loc, scale), 1))
    value = learner.networks.critic(minibatch["observation"], 2 * action)[:, 0]
    near = kl < max_kl
    assert near.any() == (max_kl > 1e-9)
    assert near.all() == (max_kl > 1)
    loss = (near * (alpha * log_density - value) + ~near * beta * kl).mean()
    gradients = torch.autograd.grad(loss, parameters)
    torch.manual_seed(5)
    record = learner.actor_step(minibatch)
    for parameter, start, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(parameter, start - 0.1 * gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(list(learner.networks.critic.parameters()), critic, rtol=0, atol=0)
    assert record["within_kl"].item() == near.float().mean().item()
    entropy = -log_density.mean().item()
    slopes = [alpha * (entropy + 0.5), -beta * (kl.mean().item() - max_kl)]
    assert learner.multipliers.grad is not None
    assert learner.multipliers.grad.tolist() == pytest.approx(slopes, rel=1e-4)
    trainer.close()


@pytest.mark.parametrize("optim", ["adam", "sgd", "adamw"])
def test_the_multipliers_have_an_adam_of_their_own(optim: str, tmp_path: Path) -> None:
    trainer, learner = trainer_of(tmp_path, f"optim={optim}", "loss.multiplier_lr=0.2", "loss.alpha=0.3")
    own = nn.Parameter(learner.multipliers.detach().clone())
    adam = torch.optim.Adam([own], 0.2, eps=1e-5)
    minibatch = minibatch_of(trainer, learner)
    for _ in range(3):
        learner.actor_step(minibatch)
        assert learner.multipliers.grad is not None
        own.grad = learner.multipliers.grad.clone()
        adam.step()
        torch.testing.assert_close(learner.multipliers, own)
    trainer.close()


def test_an_update_is_epochs_of_the_two_steps_over_one_batch(tmp_path: Path) -> None:
    settings = ["loss.normalize_reward=true", "optim.schedule=linear", "optim.lr=1e-3"]
    trainer, learner = trainer_of(tmp_path / "one", *settings)
    batch = trainer.collect()
    other, apart = trainer_of(tmp_path / "other", *settings)
    same = other.collect()
    torch.testing.assert_close(batch["action"], same["action"], rtol=0, atol=0)
    torch.manual_seed(8)
    metrics = learner.update(batch, 0.0)
    torch.manual_seed(8)
    assert apart.reward_norm is not None
    same["next", "reward"] = apart.reward_norm(same["next", "reward"], same["next", "done"])
    apart.targets(same)
    keys = ["observation", "action", "loc", "scale", "value_target", "next_features"]
    entries = {key: same[key].flatten(0, 1) for key in keys}
    epochs: list[list[dict[str, Tensor]]] = []
    for _ in range(2):
        epochs.append([])
        for rows in torch.randperm(64).split(16):
            minibatch = {key: entry[rows] for key, entry in entries.items()}
            epochs[-1].append(apart.critic_step(minibatch) | apart.actor_step(minibatch))
    torch.testing.assert_close(learner.weights, apart.weights)
    torch.testing.assert_close(learner.multipliers, apart.multipliers)
    for name, records in (("kl", epochs[1]), ("entropy", epochs[1]), ("critic", epochs[0] + epochs[1])):
        assert metrics[f"loss/{name}"] == pytest.approx(np.mean([record[name].item() for record in records]), rel=1e-4)
    assert metrics["train/lr"] == 1e-3
    assert learner.update(trainer.collect(), 0.25)["train/lr"] == pytest.approx(0.75e-3)
    for made in (trainer, other):
        made.close()


def test_a_warm_start_needs_a_critic_of_the_same_range(tmp_path: Path) -> None:
    trainer, learner = trainer_of(tmp_path / "source")
    trainer.close()
    _, other = trainer_of(tmp_path / "other", "policy.v_max=200")
    learner.warm_start(learner.state_dict())
    with pytest.raises(RuntimeError, match=r"= \[-20.0, 20.0\], and this run's \[-20.0, 200.0\]"):
        other.warm_start(learner.state_dict())


def test_the_critics_encoders_start_as_the_actors(tmp_path: Path) -> None:
    encoder = "policy.encoders.observation={_target_: rlexp.policies.encoders.MLP, num_cells: [6]}"
    trainer, learner = trainer_of(tmp_path, encoder, "policy.orthogonal=true")
    for network in (learner.networks.actor, learner.critic.reading):
        (weight,) = [p for name, p in network.named_parameters() if p.shape == (6, 3)]
        torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(3))
    trainer.close()


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["loss=reppo", "policy=normal"], "policy", "must be action_value"),
        (["policy=action_value"], "policy", "only loss=reppo trains"),
        (["loss=reppo", "target_kl=0.1"], "target_kl", "use loss.max_kl"),
        (["loss=reppo", "cuda_graph=true"], "cuda_graph", "no meaning"),
        (["loss=reppo", "compile=true"], "compile", "no meaning"),
        (["loss=reppo", "critic_num_epochs=2"], "critic_num_epochs", "needs a loss with a weight"),
        (["loss=reppo", "policy.shared=true"], "policy.shared", "layers of its own"),
        (["loss=reppo", "policy.v_min=3", "policy.v_max=2"], "policy.v_max", "must be above"),
        (["loss=reppo", "loss.average_gae=true"], "loss.average_gae", "no such setting"),
        (["loss=reppo", "loss.target_entropy=0.7"], "loss.target_entropy", "less than 0.69"),
        (["loss=reppo", "collector=multi_async"], "collector", "newest policy"),
        (["loss=reppo", "optim.schedule=kl_adaptive"], "optim.schedule", "keeps its KL by itself"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides: list[str], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([*overrides, "logger=none"])
    assert any(problem.key == key and said in problem.message for problem in caught.value.problems), caught.value


def test_actions_that_it_cannot_train_are_refused(tmp_path: Path) -> None:
    config = load_config(["env=cartpole", "loss=reppo", "policy=action_value", "logger=none"])
    with pytest.raises(ConfigError, match="needs continuous, bounded actions, and this environment's are discrete"):
        Trainer.from_config(config, tmp_path)


def test_it_learns_to_swing_the_pendulum_up(tmp_path: Path) -> None:
    """From about -1,200 for random actions, within 30,000 steps."""
    overrides = [
        *("env=gym", "env.id=Pendulum-v1", "env.num_envs=8", "env.num_workers=1", "loss=reppo", "logger=none"),
        *("collector.frames_per_batch=1024", "minibatch_size=128", "num_epochs=8", "total_frames=30_720"),
        *("policy.num_cells=[64,64]", "loss.gamma=0.95", "optim.lr=1e-3", "evaluation.episodes=10", "threads=1"),
        "evaluation.interval=1_000_000",
    ]
    summary = Trainer.from_config(load_config(overrides), tmp_path).fit()
    assert summary["final"]["eval/return"] > -400


def test_the_critic_is_saved_with_the_agent(tmp_path: Path) -> None:
    trainer, learner = trainer_of(tmp_path)
    trainer.fit()
    assert isinstance(learner.critic, ActionValue)
    resumed = Trainer.resume(tmp_path, ["total_frames=384"])
    found = cast("REPPOLearner", resumed.learner)
    torch.testing.assert_close(found.weights, learner.weights, rtol=0, atol=0)
    assert found.multipliers.tolist() == learner.multipliers.tolist()
    resumed.close()
