"""PPO's update against the algorithm written out, and each of its settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import composed, ppo_learner
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.optim.schedules import KLAdaptive
from rlexp.policies import ActorCritic
from rlexp.policies.config.network import NetworkConfig
from rlexp.policies.recurrent import STATE
from rlexp.runs import checkpoint
from rlexp.seeding import rng_state
from rlexp.training.learners.batches import clip_grad_norm

SMALL = [
    *("env=inverted_pendulum", "env.num_envs=2", "collector.frames_per_batch=64", "minibatch_size=32"),
    *("env.init_random_steps=16", "evaluation.episodes=1", "logger=none", "threads=1", "device=cpu"),
    *("policy.num_cells=[8]", "num_epochs=3", "total_frames=128"),
]
KERNELS = pytest.mark.parametrize("kernels", ["false", "auto"])


def built(folder: Path, *overrides: str) -> Trainer:
    return Trainer(composed(*SMALL, *overrides), folder)


def updated(folder: Path, *overrides: str, save: bool = False) -> tuple[Trainer, dict[str, float]]:
    trainer = built(folder, *overrides)
    metrics = trainer.update(trainer.collect())
    if save:
        trainer.save()
    trainer.close()
    return trainer, metrics


class PPO:
    """Schulman et al. 2017, algorithm 1, with the usual additions: nothing but torch, nothing of rlexp."""

    def __init__(self, networks: ActorCritic, num_batches: int) -> None:
        self.actor, self.critic = copy.deepcopy((networks.actor, networks.critic))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=2e-3, betas=(0.9, 0.99), eps=1e-5)
        self.schedule = CosineAnnealingLR(self.optimizer, num_batches)
        self.num_batches, self.batch = num_batches, 0
        self.returns: list[Tensor] = []
        self.running: Tensor = torch.zeros(())

    def scaled(self, reward: Tensor, done: Tensor) -> Tensor:
        for t in range(reward.shape[1]):
            self.running = 0.97 * self.running + reward[:, t].double()
            self.returns.append(self.running)
            self.running = self.running * ~done[:, t]
        variance = torch.cat(self.returns).var(correction=0)
        return reward / (variance + 1e-8).sqrt().float()

    def value(self, observation: Tensor) -> Tensor:
        found: Tensor = self.critic.module(observation)[..., 0]
        return found

    @torch.no_grad()
    def advantages(self, batch: TensorDictBase, reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        done, terminated = (batch["next", key][..., 0] for key in ("done", "terminated"))
        value, after = self.value(batch["observation"]), self.value(batch["next", "observation"])
        delta = reward + 0.97 * after * ~terminated - value
        advantage = torch.zeros_like(delta)
        last = torch.zeros(len(delta))
        for t in reversed(range(delta.shape[1])):
            advantage[:, t] = last = delta[:, t] + 0.97 * 0.9 * last * ~done[:, t]
        return value, advantage, advantage + value

    def update(self, batch: TensorDictBase) -> None:
        left = 1 - self.batch / self.num_batches  # of the run
        epsilon, bonus = 0.1 * left, 0.02 * left
        reward = self.scaled(batch["next", "reward"][..., 0], batch["next", "done"][..., 0])
        observation, action = (batch[key].flatten(0, 1) for key in ("observation", "action"))
        old_log_prob = batch["action_log_prob"].flatten()
        for epoch in range(3):
            value, advantage, target = (x.flatten() for x in self.advantages(batch, reward))
            if epoch == 0:
                old_value = value
            for chosen in torch.randperm(len(value))[: len(value) // 24 * 24].split(24):
                dist = self.actor.get_dist(batch.reshape(-1)[chosen].select("observation"))
                ratio = (dist.log_prob(action[chosen]) - old_log_prob[chosen]).exp()
                weight = (advantage[chosen] - advantage[chosen].mean()) / advantage[chosen].std()
                objective = torch.minimum(ratio * weight, ratio.clamp(1 - epsilon, 1 + epsilon) * weight).mean()
                new_value = self.value(observation[chosen])
                near = old_value[chosen] + (new_value - old_value[chosen]).clamp(-0.05, 0.05)
                error = torch.maximum((new_value - target[chosen]) ** 2, (near - target[chosen]) ** 2).mean()
                loss = -objective + 0.7 * error - bonus * dist.entropy().mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, 0.4)
                self.optimizer.step()
        self.schedule.step()
        self.batch += 1


WRITTEN_OUT = [
    *("minibatch_size=24", "optim.lr=2e-3", "optim.betas=[0.9,0.99]", "optim.eps=1e-5", "optim.schedule=cosine"),
    *("loss.gamma=0.97", "loss.lmbda=0.9", "loss.normalize_reward=true", "loss.normalize_advantage=true"),
    *("loss.clip_epsilon=0.1", "loss.clip_schedule=linear", "loss.entropy_coeff=0.02", "loss.entropy_schedule=linear"),
    *("loss.loss_critic_type=l2", "loss.critic_coeff=0.7", "loss.clip_value=0.05", "max_grad_norm=0.4"),
    *("recompute_advantage=true", "total_frames=256", "env.max_episode_steps=9"),
]


@KERNELS
@pytest.mark.parametrize("policy", [["policy=normal"], ["env=cartpole"]], ids=["normal", "categorical"])
def test_update_is_the_algorithm_written_out(policy: list[str], kernels: str, tmp_path: Path) -> None:
    """Three updates of four: rewards, advantages, clipping, schedules, minibatches and the optimizer's steps."""
    trainer = built(tmp_path, *policy, *WRITTEN_OUT, f"kernels={kernels}")
    own = PPO(trainer.networks, trainer.config.num_batches)
    start = trainer.learner.weights.detach().clone()
    norms = []
    for _ in range(3):
        batch = trainer.collect()
        given, generator = batch.clone(), torch.get_rng_state()
        norms.append(trainer.update(batch)["optim/grad_norm"])
        after = torch.get_rng_state()
        torch.set_rng_state(generator)
        own.update(given)
        torch.set_rng_state(after)
        weights = torch.cat([p.detach().flatten() for p in own.parameters])
        torch.testing.assert_close(trainer.learner.weights.detach(), weights, rtol=0, atol=3e-5)
    assert (trainer.learner.weights.detach() - start).abs().max() > 3e-3
    assert max(norms) > 0.4
    trainer.close()


@pytest.mark.parametrize(("size", "norm"), [(3.0, 0.5), (0.1, 0.1)], ids=["longer", "shorter"])
def test_a_gradient_is_scaled_down_to_the_bound_and_never_up(size: float, norm: float) -> None:
    weights = nn.Parameter(torch.zeros(20))
    gradient = torch.randn(20)
    gradient *= size / gradient.norm()
    weights.grad = gradient.clone()
    assert clip_grad_norm(weights, 0.5).item() == pytest.approx(size)
    torch.testing.assert_close(weights.grad, gradient * norm / size, rtol=1e-4, atol=0)
    theirs = nn.Parameter(torch.zeros(20))
    theirs.grad = gradient.clone()
    nn.utils.clip_grad_norm_(theirs, 0.5)
    torch.testing.assert_close(weights.grad, theirs.grad)


def test_steps_are_as_long_as_their_gradients_where_those_are_short(tmp_path: Path) -> None:
    sgd = ["optim=sgd", "optim.momentum=0", "optim.lr=1.0", "optim.schedule=constant", "num_epochs=1"]
    trainer = built(tmp_path, *sgd, "minibatch_size=64", "max_grad_norm=1e6")
    before = trainer.learner.weights.detach().clone()
    metrics = trainer.update(trainer.collect())
    trainer.close()
    step = (trainer.learner.weights.detach() - before).norm().item()
    assert step == pytest.approx(metrics["optim/grad_norm"], rel=1e-4)
    assert 0 < step < 1e6


@KERNELS
def test_first_importance_ratios_are_one(kernels: str, tmp_path: Path) -> None:
    trainer = built(tmp_path, "env=hopper", f"kernels={kernels}")
    learner = ppo_learner(trainer)
    for _ in range(2):
        batch = trainer.collect()
        learner.minibatch_loss.prepare(batch)
        learner.advantage(batch)
        for minibatch in learner.minibatches(batch):
            found = learner.minibatch_loss.metrics(
                {key: value[None].detach() for key, value in learner.minibatch_loss.losses(minibatch).items()}
            )
            assert found["loss/max_ratio"].item() == pytest.approx(1, abs=1e-4)
            assert found["loss/ess"].item() == pytest.approx(1, abs=1e-4)
        trainer.update(batch)
    trainer.close()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss=any", "loss.loss_module._target_=torchrl.objectives.ClipPPOLoss"],
        ["loss=any", "loss.loss_module._target_=torchrl.objectives.A2CLoss", "loss.loss_module.functional=false"],
        ["optim=any", "optim.optimizer._target_=torch.optim.SGD", "optim.optimizer.momentum=0.9"],
        ["kernels=false"],
    ],
)
def test_actor_and_critic_are_trained_as_themselves(overrides: list[str], tmp_path: Path) -> None:
    trainer = built(tmp_path, *overrides)
    parameters = trainer.networks.parameters()
    trained = [p for group in ppo_learner(trainer).optimizer.param_groups for p in group["params"]]
    expected = parameters if "optim=any" in overrides else [trainer.learner.weights]
    assert all(a is b for a, b in zip(trained, expected, strict=True))
    before = [p.detach().clone() for p in parameters]
    trainer.update(trainer.collect())
    trainer.close()
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert torch.equal(torch.cat([p.detach().flatten() for p in parameters]), trainer.learner.weights.detach())


@KERNELS
def test_epochs_end_by_target_kl(kernels: str, tmp_path: Path) -> None:
    kernel = f"kernels={kernels}"
    _, whole = updated(tmp_path / "whole", "optim.lr=1e-2", kernel)
    _, stopped = updated(tmp_path / "stopped", "optim.lr=1e-2", "target_kl=1e-6", kernel)
    _, free = updated(tmp_path / "free", "optim.lr=1e-2", "target_kl=1e6", kernel)
    assert (stopped["optim/epochs"], free["optim/epochs"]) == (1, 3)
    assert free == whole
    _, one = updated(tmp_path / "one", "optim.lr=1e-2", "num_epochs=1", kernel)
    assert stopped == one
    assert stopped["loss/kl"] > 1e-6


@KERNELS
def test_epochs_end_by_the_kl_of_a_minibatch_where_that_is_asked(kernels: str, tmp_path: Path) -> None:
    fast = ["optim.lr=1e-2", "minibatch_size=8", "target_kl=1e-6", f"kernels={kernels}"]
    steps = {}
    for check in ("epoch", "minibatch"):
        trainer, metrics = updated(tmp_path / check, *fast, f"target_kl_check={check}")
        (state,) = ppo_learner(trainer).optimizer.state.values()
        steps[check] = int(state["step"])
        assert metrics["optim/epochs"] == 1
    # The first minibatch is of the policy that acted; after its step the second is beyond.
    assert steps == {"epoch": 8, "minibatch": 2}


@KERNELS
def test_a_critic_with_passes_of_its_own_is_trained_after_the_policy(kernels: str, tmp_path: Path) -> None:
    own = ["critic_num_epochs=2", "critic_minibatch_size=16", "optim.critic_lr=5e-3", "loss.loss_critic_type=l2"]
    trainer = built(tmp_path, *own, f"kernels={kernels}", "loss.normalize_reward=false")
    learner = ppo_learner(trainer)
    actor, critic = copy.deepcopy((trainer.networks.actor, trainer.networks.critic))
    batch = trainer.collect()
    learner.advantage(given := batch.clone())
    torch.manual_seed(5)
    trainer.rng = rng_state()
    metrics = trainer.update(batch)
    trainer.close()

    torch.manual_seed(5)
    steps, losses = given.reshape(-1), []
    optimizer = torch.optim.Adam(actor.parameters(), lr=7e-4, eps=1e-5)
    for _ in range(3):
        for chosen in torch.randperm(64).split(32):
            part = steps[chosen]
            log_ratio = actor.get_dist(part.select("observation")).log_prob(part["action"]) - part["action_log_prob"]
            ratio, weight = log_ratio.exp(), part["advantage"][:, 0]
            weight = (weight - weight.mean()) / weight.std()
            optimizer.zero_grad()
            (-torch.minimum(ratio * weight, ratio.clamp(0.8, 1.2) * weight).mean()).backward()
            nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
            optimizer.step()
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, eps=1e-5)
    for _ in range(2):
        for chosen in torch.randperm(64).split(16):
            part = steps[chosen]
            optimizer.zero_grad()
            loss = (critic.module(part["observation"]) - part["value_target"]).square().mean()
            loss.backward()
            losses.append(loss.item())
            nn.utils.clip_grad_norm_(critic.parameters(), 0.5)
            optimizer.step()
    for ours, theirs in ((trainer.networks.actor, actor), (trainer.networks.critic, critic)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert metrics["loss/critic"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_value_scale_and_a_critic_of_its_own_resume_to_the_bit(tmp_path: Path) -> None:
    settings = ["critic_num_epochs=2", "loss.normalize_value=true", "loss.normalize_reward=false", "total_frames=256"]
    whole = built(tmp_path / "whole", *settings)
    rows = list(whole)
    whole.close()
    part = built(tmp_path / "part", *settings)
    for _ in range(2):
        part.iterate()
    part.save()
    part.close()
    resumed = Trainer.resume(tmp_path / "part")
    assert list(resumed) == rows[2:]
    resumed.close()


def test_a_warm_start_takes_the_scale_of_the_values(tmp_path: Path) -> None:
    normalized = "loss.normalize_value=true"
    first, _ = updated(tmp_path / "first", normalized, save=True)
    saved = ppo_learner(first).state_dict()["value_norm"]
    warm = f"warm_start={tmp_path / 'first'}"
    begun = built(tmp_path / "warm", warm, normalized)
    taken = ppo_learner(begun).state_dict()["value_norm"]
    begun.close()
    assert saved.keys() == taken.keys()
    assert all(torch.equal(saved[key], taken[key]) for key in saved)
    with pytest.raises(ConfigError, match=r"trained with loss\.normalize_value=true"):
        built(tmp_path / "other", warm)
    with pytest.raises(ConfigError, match=r"trained with loss\.normalize_reward=true"):
        built(tmp_path / "raw", warm, normalized, "loss.normalize_reward=false")
    updated(tmp_path / "plain", "loss.normalize_reward=false", save=True)
    with pytest.raises(ConfigError, match=r"trained with loss\.normalize_reward=false"):
        built(tmp_path / "scaled", f"warm_start={tmp_path / 'plain'}")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loss.clip_value=0.2"], "loss.clip_value"),
        (["policy=gru"], "critic_num_epochs"),
        (["policy.shared=true"], "policy.shared"),
        (["optim.schedule=kl_adaptive"], "optim.schedule"),
        (["cuda_graph=true"], "cuda_graph"),
        (["loss=any", "loss.loss_module._target_=torchrl.objectives.A2CLoss"], "critic_num_epochs"),
        (["critic_minibatch_size=65"], "critic_minibatch_size"),
        (["target_kl_check=minibatch"], "target_kl_check"),
        (["target_kl=0.01", "num_epochs=1"], "target_kl"),
    ],
)
def test_what_does_not_go_with_a_critic_of_its_own_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([*SMALL, "critic_num_epochs=2", *overrides])
    assert [problem.key for problem in error.value.problems] == [key]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loss.clip_epsilon=1.5"], "loss.clip_epsilon"),
        (["loss=rpo", "loss.clip_schedule=linear", "compile=true"], "compile"),
        (["cuda_graph=true", "checks=true"], "cuda_graph"),
    ],
)
def test_what_a_loss_cannot_do_is_refused_before_anything_is_built(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([*SMALL, *overrides])
    assert [problem.key for problem in error.value.problems] == [key]


class OwnKLAdaptive(KLAdaptive):
    """Only once it is imported is it known to follow the KL."""


def test_a_critic_of_its_own_has_no_kl_to_follow(tmp_path: Path) -> None:
    own = f"optim.schedule={{_target_: {__name__}.OwnKLAdaptive}}"
    built(tmp_path / "one", own).close()
    with pytest.raises(ConfigError, match=r"optim.schedule=.*\n.*here are none"):
        built(tmp_path / "two", own, "critic_num_epochs=2")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["target_kl=0.01"], "target_kl"),
        (["optim.schedule=kl_adaptive"], "optim.schedule"),
        (["optim.schedule={_target_: rlexp.optim.schedules.KLAdaptive, desired_kl: 0.02}"], "optim.schedule"),
        (["loss=kl_ppo"], "loss"),
    ],
)
def test_what_goes_by_the_kl_needs_a_second_step(tmp_path: Path, overrides: list[str], key: str) -> None:
    """The KL is that before each step: before the only one it is 0."""
    with pytest.raises(ConfigError) as error:
        load_config([*SMALL, "num_epochs=1", "minibatch_size=64", *overrides])
    assert [problem.key for problem in error.value.problems] == [key]
    each = ["target_kl_check=minibatch"] if key == "target_kl" else []
    built(tmp_path / "two", "num_epochs=1", "minibatch_size=32", *overrides, *each).close()


def test_where_vtrace_corrects_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path / "three", "loss.estimator=vtrace").close()
    assert "td1" not in caplog.text
    built(tmp_path / "once", "loss.estimator=vtrace", "recompute_advantage=false").close()
    assert "which makes it td1" in caplog.text


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_frozen_weights_stay(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlexp.policies.config.network.NetworkConfig.body", frozen_body)
    trainer = built(tmp_path, f"kernels={kernels}", "optim=adamw", "optim.weight_decay=0.1")
    networks = trainer.networks
    before = {name: p.clone() for name, p in [*networks.actor.named_parameters(), *networks.critic.named_parameters()]}
    trainer.update(trainer.collect())
    for name, parameter in [*networks.actor.named_parameters(), *networks.critic.named_parameters()]:
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trainer.close()


def frozen_body(self: NetworkConfig, inputs: Any, which: str, outputs: int) -> nn.Module:
    """As `NetworkConfig.body`, with a first layer that is not trained."""
    trunk, width = self.trunk(inputs)
    next(trunk.children()).requires_grad_(False)
    return nn.Sequential(trunk, nn.Linear(width, outputs))


def test_advantage_is_recomputed_or_not(tmp_path: Path) -> None:
    calls: dict[bool, int] = {}
    for recompute in (True, False):
        trainer = built(tmp_path / str(recompute), f"recompute_advantage={recompute}")
        found: list[TensorDictBase] = []
        ppo_learner(trainer).advantage.register_forward_hook(lambda m, i, batch, found=found: found.append(batch))
        trainer.update(trainer.collect())
        trainer.close()
        calls[recompute] = len(found)
    assert calls == {True: 3, False: 1}


def test_epochs_without_an_importance_ratio_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    updated(tmp_path / "one", "loss=a2c", "num_epochs=1")
    assert "importance ratio" not in caplog.text
    updated(tmp_path / "three", "loss=a2c", "num_epochs=3")
    assert "no importance ratio" in caplog.text


@KERNELS
@pytest.mark.parametrize(("minibatch_size", "raised"), [(32, 3), (64, 2)])
def test_kl_adaptive_adapts_after_each_epoch_that_measures_a_step_and_logs_the_rate_that_the_update_began_with(
    minibatch_size: int, raised: int, kernels: str, tmp_path: Path
) -> None:
    settings = ["optim.schedule=kl_adaptive", "optim.lr=1e-4", f"minibatch_size={minibatch_size}"]
    trainer = built(tmp_path, *settings, f"kernels={kernels}")
    rows = [trainer.iterate() for _ in range(2)]
    trainer.close()
    # Steps at this rate change the policy by far less than the target: each of the epochs raises it, but not a first
    # one of a single minibatch, before which there was no step.
    assert [row["train/lr"] for row in rows] == pytest.approx([1e-4, 1e-4 * 1.5**raised])


def test_schedules_make_one_step_per_batch(tmp_path: Path) -> None:
    trainer = built(tmp_path, "optim.schedule=linear", "optim.lr=1e-3", "total_frames=256")
    assert [row["train/lr"] for row in trainer] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    trainer.close()


def test_annealed_coefficients_are_where_they_would_be_had_the_run_always_been_so_long(tmp_path: Path) -> None:
    annealed = ["loss.clip_schedule=linear", "loss.entropy_coeff=0.01", "loss.entropy_schedule=linear"]
    built(tmp_path / "run", *annealed).fit()
    last = checkpoint.load(tmp_path / "run").state.learner["loss"]
    assert last["clip_epsilon"].item() == pytest.approx(0.2 * 1 / 2)
    Trainer.resume(tmp_path / "run", ["total_frames=256"]).fit()
    last = checkpoint.load(tmp_path / "run").state.learner["loss"]
    assert last["clip_epsilon"].item() == pytest.approx(0.2 * 1 / 4)
    assert last["entropy_coeff"].item() == pytest.approx(0.01 * 1 / 4)


@KERNELS
def test_annealing_reaches_the_loss(kernels: str, tmp_path: Path) -> None:
    trainer = built(tmp_path, "loss.clip_schedule=linear", "loss.clip_epsilon=0.2", f"kernels={kernels}")
    learner = ppo_learner(trainer)
    learner.update(trainer.collect(), progress=0.0)
    batch = trainer.collect()
    learner.update(batch, progress=0.75)
    trainer.close()
    minibatch = next(learner.minibatches(batch))
    key = "latent_log_prob" if kernels == "auto" else "action_log_prob"
    minibatch[key] -= 0.06  # a ratio of about 1.06: beyond the newest bound, within the first
    record = {name: value[None].detach() for name, value in learner.minibatch_loss.losses(minibatch).items()}
    assert learner.loss.coefficients["clip_epsilon"].item() == pytest.approx(0.05)
    assert learner.minibatch_loss.metrics(record)["loss/clip_fraction"].item() > 0.5


def test_entropy_is_estimated_where_the_loss_computes_none(tmp_path: Path) -> None:
    trainer = built(tmp_path, "loss.entropy_coeff=0")
    batch = trainer.collect()
    expected = -batch["action_log_prob"].mean().item()
    assert trainer.update(batch)["loss/entropy"] == pytest.approx(expected)
    trainer.close()


def test_explained_variance_is_that_of_before_the_update(tmp_path: Path) -> None:
    trainer = built(tmp_path, "loss.normalize_reward=false")
    batch = trainer.collect()
    given = batch.clone()
    found = trainer.update(batch)["loss/explained_variance"]
    trainer.close()
    reference = built(tmp_path / "again", "loss.normalize_reward=false")  # the same first weights
    ppo_learner(reference).advantage(given)
    reference.close()
    value, target = (given[key].flatten().double().numpy() for key in ("state_value", "value_target"))
    assert found == pytest.approx(1 - np.var(target - value) / np.var(target), rel=1e-4)


def test_minibatches_of_a_recurrent_policy_are_whole_sequences(tmp_path: Path) -> None:
    trainer = built(tmp_path, "env=hopper", "policy=gru", "policy.sequence_length=8")
    batch = trainer.collect()
    ppo_learner(trainer).minibatch_loss.prepare(batch)
    ppo_learner(trainer).advantage(batch)
    batch.set("latent", torch.arange(64).reshape(2, 32, 1).float())
    seen = torch.cat([minibatch["latent"].reshape(-1, 8) for minibatch in ppo_learner(trainer).minibatches(batch)])
    assert (seen.diff(dim=1) == 1).all()
    assert (seen[:, 0] % 8 == 0).all()
    assert sorted(seen.flatten().tolist()) == list(range(64))
    assert STATE in ppo_learner(trainer).minibatch_loss.keys
    trainer.close()
