"""Recurrent policies: what is remembered, when it is forgotten, and that training sees what acting saw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from agents import composed, networks, ppo_learner
from torch import Tensor

from rlexp import Trainer, load_policy
from rlexp.agent import Agent
from rlexp.agent.evaluation import evaluate, evaluation_seeds
from rlexp.agent.export import export_policy
from rlexp.policies import LSTMConfig
from rlexp.policies.recurrent import STATE
from rlexp.runs import checkpoint
from rlexp.runs.rundir import RunDir

SMALL = [
    *("collector.frames_per_batch=128", "env.num_envs=4", "minibatch_size=64", "num_epochs=2", "total_frames=256"),
    *("env.init_random_steps=32", "evaluation.interval=128", "evaluation.episodes=2", "logger=none", "threads=1"),
    *("policy.num_cells=[16]", "env.max_episode_steps=40"),
]
SHORT = ["policy.hidden_size=16", "policy.sequence_length=16", "env.max_episode_steps=10"]
RECURRENT = [
    ["env=position_only_cartpole", "policy=gru", *SHORT],
    ["env=hopper", "policy=lstm", *SHORT, "policy.shared=true"],
    ["env=hopper", "policy=gru", *SHORT, "policy.distribution=normal", "kernels=false"],
]


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "torchrl"])
def test_first_importance_ratios_are_one(overrides: list[str], tmp_path: Path) -> None:
    """In the first batch and a later one, which begins in mid-episode with a recurrent state of it."""
    trainer = Trainer(composed(*overrides, *SMALL, "optim.lr=0.01"), tmp_path)
    for _ in range(2):
        batch = trainer.collect()
        loss = ppo_learner(trainer).minibatch_loss
        loss.prepare(batch)
        ppo_learner(trainer).advantage(batch)
        for minibatch in ppo_learner(trainer).minibatches(batch):
            record = {key: value[None].detach() for key, value in loss.losses(minibatch).items()}
            assert loss.metrics(record)["loss/max_ratio"].item() == pytest.approx(1, abs=1e-4)
            assert loss.kl(record).item() == pytest.approx(0, abs=1e-8)
        trainer.update(batch)
    assert batch["is_init"][:, 1:].any()
    assert not batch["is_init"][:, 0].all()
    assert batch[STATE][:, 0].abs().max() > 0
    trainer.close()


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "torchrl"])
def test_values_are_those_of_stepping_through_every_episode(overrides: list[str], tmp_path: Path) -> None:
    """At every step, and where an episode is truncated or the batch ends, one step further than the sequences go."""
    trainer = Trainer(composed(*SMALL, *overrides, "loss.lmbda=0"), tmp_path)
    trainer.collect()
    batch = trainer.collect()
    ppo_learner(trainer).advantage(batch)
    critic = trainer.networks.critic.module
    after = batch["next"]
    with torch.no_grad():
        for t in range(batch.shape[1]):
            here = [batch[key][:, t] for key in ("observation", "is_init", STATE)]
            value = critic(*here)
            torch.testing.assert_close(batch["state_value"][:, t], value, rtol=1e-4, atol=1e-5)
            following = critic(*(after[key][:, t] for key in ("observation", "is_init", STATE)))
            target = after["reward"][:, t] + 0.99 * following * ~after["terminated"][:, t]
            torch.testing.assert_close(batch["value_target"][:, t], target, rtol=1e-4, atol=1e-4)
    assert (after["done"] & ~after["terminated"]).any() or "env=position_only_cartpole" in overrides
    trainer.close()


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "torchrl"])
def test_resumed_run_remembers_what_the_run_did(overrides: list[str], tmp_path: Path) -> None:
    """Every number and the final state are the same; without what is remembered they are not."""
    config = composed(*overrides, *SMALL, "total_frames=512", "evaluation.interval=512", "num_epochs=1")

    def train(trainer: Trainer, iterations: int) -> list[dict[str, float]]:
        return [trainer.iterate() for _ in range(iterations)]

    whole = Trainer(config, tmp_path / "run")
    train(whole, 2)
    saved = whole.save()
    rows = train(whole, 2)

    def resumed(*, forgetful: bool) -> list[dict[str, float]]:
        start = checkpoint.load(saved)
        if forgetful:
            state = start.state.collector.get("recurrent") or start.state.collector["carried"]
            assert state[STATE].abs().max() > 0
            state[STATE].zero_()
        again = Trainer(config, RunDir(tmp_path / "run"), start)
        found = train(again, 2)
        again.close()
        return found

    whole.close()
    assert resumed(forgetful=False) == rows
    assert resumed(forgetful=True) != rows


@pytest.mark.parametrize("layer", ["gru", "lstm"])
def test_state_is_zero_at_the_beginning_of_an_episode_and_nowhere_else(layer: str) -> None:
    built = networks(f"policy={layer}")
    core = built.critic.module.core
    observation, state = torch.randn(3, 8, 11), torch.randn(3, core.state_size)
    is_init = torch.zeros(3, 8, 1, dtype=torch.bool)
    is_init[0, 3], is_init[1, 0], is_init[2, 3], is_init[2, 6] = True, True, True, True
    whole = core.sequences([observation], is_init, state)
    remembered = state
    for t in range(8):
        features, remembered = core.step([observation[:, t]], is_init[:, t], remembered)
        torch.testing.assert_close(features, whole[:, t])
    alone = core.sequences([observation[:1, 3:]], torch.zeros(1, 5, 1, dtype=torch.bool), torch.zeros_like(state[:1]))
    torch.testing.assert_close(whole[:1, 3:], alone)


FEEDFORWARD = [["env=acrobot", "policy=categorical"], ["env=hopper", "policy=normal"]]


@pytest.fixture(scope="module", params=[*RECURRENT[:2], *FEEDFORWARD], ids=["gru", "lstm", "categorical", "normal"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(composed(*request.param, *SMALL, "optim.lr=0.01"), tmp_path_factory.mktemp("trained") / "run")
    trainer.fit()
    return trainer


def test_evaluation_from_the_checkpoint_is_the_runs_own(trained: Trainer) -> None:
    agent = Agent(trained.run.path)
    seeds = evaluation_seeds(trained.config.seed, trained.config.evaluation.episodes)
    assert trained.evaluator.final is not None
    assert evaluate(agent.env, agent.networks.actor, seeds).returns == trained.evaluator.final.returns
    sampled = evaluate(agent.env, agent.networks.actor, seeds, deterministic=False)
    assert all(map(math.isfinite, sampled.returns))


def test_loaded_policy_plays_the_evaluations_episodes(trained: Trainer) -> None:
    policy = load_policy(trained.run.path)
    spec = trained.config.env
    env = gymnasium.make(spec.id, max_episode_steps=spec.max_episode_steps)  # type: ignore[attr-defined]
    assert trained.evaluator.final is not None
    for seed, expected in zip(trained.evaluator.final.seeds, trained.evaluator.final.returns, strict=True):
        observation, _ = env.reset(seed=seed)
        policy.reset()
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total, ended = total + float(reward), terminated or truncated
        assert total == pytest.approx(expected, rel=1e-4)


def test_a_step_takes_arrays_as_well(trained: Trainer) -> None:
    policy = load_policy(trained.run.path)
    observation = np.linspace(-1, 1, math.prod(policy.shapes["observation"])).reshape(policy.shapes["observation"])
    action, state = policy.step(observation)
    same, after = policy.step(torch.as_tensor(observation), None)
    assert torch.equal(action, same)
    assert torch.equal(state, after)
    expected = policy.step(observation, state)
    for remembered in (state.double().numpy(), state.tolist()):
        assert all(map(torch.equal, policy.step(observation, remembered), expected))


def test_loaded_recurrent_policy_remembers_each_of_a_batch(trained: Trainer) -> None:
    policy = load_policy(trained.run.path)
    if not policy.recurrent:
        pytest.skip("is feed-forward")
    first, second = torch.randn(2, 3, *policy.shapes["observation"]).double()
    alone = []
    for row, later in zip(first, second, strict=True):
        policy.reset()
        alone.append((policy(row), policy(later)))
    policy.reset()
    afresh = policy(second[1])
    policy.reset()
    expected = torch.as_tensor(np.stack([action for action, _ in alone]))
    torch.testing.assert_close(torch.as_tensor(policy(first)), expected)
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        policy(first[:2])
    expected = torch.as_tensor(np.stack([alone[0][1], afresh, alone[2][1]]))
    for ended in (torch.tensor([False, True, False]), [0, 1, 0], np.array([0, 1, 0], np.uint8)):
        policy.reset()
        policy(first)
        policy.reset(ended)
        torch.testing.assert_close(torch.as_tensor(policy(second)), expected)


def exported(trained: Trainer, folder: Path) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """From observation and state to action and state: by ONNX for gru, torch for lstm, since each takes seconds."""
    if isinstance(trained.config.policy, LSTMConfig):
        file = export_policy(Agent(trained.run.path), "torch", folder / "policy.pt2")
        program: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = torch.export.load(file).module()
        return program
    session = onnxruntime.InferenceSession(export_policy(Agent(trained.run.path), "onnx", folder / "policy.onnx"))
    assert [made.name for made in session.get_outputs()] == ["action", "next_recurrent_state"]

    def play(observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        action, state = session.run(None, {"observation": observation.numpy(), "recurrent_state": state.numpy()})
        return torch.from_numpy(action), torch.from_numpy(state)

    return play


@pytest.mark.usefixtures("quickly_checked")
def test_exported_state_is_carried_by_its_caller(trained: Trainer, tmp_path: Path) -> None:
    policy = load_policy(trained.run.path)
    if not policy.recurrent:
        pytest.skip("is feed-forward")
    play = exported(trained, tmp_path)
    state = torch.zeros(3, policy.state_size)
    for observation in torch.randn(5, 3, *policy.shapes["observation"]).to(policy.dtypes["observation"]):
        expected = policy(observation)
        action, state = play(observation, state)
        torch.testing.assert_close(action, expected)
        torch.testing.assert_close(state, policy._recurrent_state)
        # One episode of three ends, for all who carry a state.
        policy.reset(np.array([False, True, False]))
        state[1] = 0


def test_shared_trunk_goes_into_a_checkpoint_and_out(tmp_path: Path) -> None:
    config = [*RECURRENT[1], *SMALL]
    first = Trainer(composed(*config), tmp_path / "first")
    first.fit()
    warm = Trainer(composed(*config, "seed=5", f"warm_start={tmp_path / 'first'}"), tmp_path / "second")
    assert torch.equal(warm.learner.weights, first.learner.weights)
    assert json.loads((tmp_path / "first" / "summary.json").read_text())["status"] == "completed"
    warm.close()
