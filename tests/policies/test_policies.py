"""Each policy trains where it fits, is refused where it does not, and computes what torchrl's distributions do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import TINY, complete, launch, only_run, rows_of
from tensordict import TensorDict
from torch import distributions
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp import Trainer, load_config, load_policy
from rlexp.agent import Agent
from rlexp.agent.evaluation import evaluate, evaluation_seeds
from rlexp.agent.export import ExportError, export_policy
from rlexp.config import ConfigError
from rlexp.kernels.acting import acting
from rlexp.kernels.terms import DistributionTerms, FamilyTerms, policy_terms
from rlexp.policies import ActorCritic
from rlexp.policies.heads import BoundedBeta
from rlexp.policies.recurrent import STATE
from rlexp.runs import checkpoint
from rlexp.runs.rundir import RunDir

CPU = torch.device("cpu")
SMALL = [*TINY, "total_frames=512", "logger=none"]
IMAGES = """
import gymnasium
import numpy as np


class Images(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (2, 36, 36), np.uint8)

    def __init__(self, discrete=False):
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def _image(self):
        return self.np_random.integers(0, 256, (2, 36, 36), dtype=np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._image(), {}

    def step(self, action):
        return self._image(), float(np.sum(action)), False, False, {}


class Unbounded(Images):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float64)

    def __init__(self):
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def _image(self):
        return self.np_random.uniform(-1, 1, 3)


gymnasium.register("Images-v0", Images, max_episode_steps=12)
gymnasium.register("Unbounded-v0", Unbounded, max_episode_steps=12)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images.py").write_text(IMAGES)
    return tmp_path


PIXELS = ["env=gym", "env.id=images:Images-v0", "env/transforms=none"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["env=hopper", "policy=normal", "policy.shared=true"],
        ["env=gym", "env.id=images:Unbounded-v0", "policy=normal"],
        ["env=pendulum", "policy=beta"],
        ["env=hopper", "policy=beta", "policy.activation_class=ELU", "policy.num_cells=[32]"],
        ["env=cartpole", "policy=categorical", "loss.entropy_coeff=0.01"],
        ["env=acrobot", "policy.shared=true", "collector=sync"],
        ["env=cartpole", "policy=gru", "loss.entropy_coeff=0.01"],
        ["env=hopper", "policy=gru", "policy.distribution=normal", "collector=sync"],
        ["env=position_only_cartpole", "policy=lstm", "policy.shared=true"],
        ["env=pendulum", "policy=lstm", "loss=any", "loss.loss_module._target_=torchrl.objectives.A2CLoss"],
        [*PIXELS, "policy=cnn"],
        [*PIXELS, "env.kwargs.discrete=true", "policy=cnn", "policy.shared=false"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_policy_trains(arguments: list[str], images: Path) -> None:
    complete([*SMALL, *arguments], images, PYTHONPATH=str(images))
    rows = rows_of(only_run(images))
    assert [row["frames"] for row in rows] == [256, 512]
    assert rows[0]["train/parameters_hash"] != rows[1]["train/parameters_hash"]
    assert "eval/return" in rows[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["env=cartpole", "policy=tanh_normal"], "tanh_normal is no distribution over this environment's actions, "
         "a choice among 2. What fits: policy=categorical, gru or lstm."),
        (["env=cartpole", "policy=gru", "policy.distribution=normal"], "normal is no distribution over"),
        (["env=hopper", "policy=categorical"], "within bounds of shape [3]. What fits: policy=tanh_normal, normal, "
         "beta, gru or lstm."),
        (["env=hopper", "policy=cnn"], "reads images [channels, height, width], and this environment's observation"),
        (PIXELS, "reads vectors, and this environment's observation has shape [2, 36, 36]. What fits: policy=cnn."),
        ([*PIXELS, "policy=lstm"], "What fits: policy=cnn."),
        ([*PIXELS, "policy=cnn", "policy.kernel_sizes=[32,32,32]"], "is too small for kernels of [32, 32, 32]"),
        (["env=gym", "env.id=images:Unbounded-v0", "policy=beta"], "What fits: policy=normal, gru or lstm."),
    ],
)  # fmt: skip
def test_policy_that_cannot_act_is_refused_with_what_can(arguments: list[str], reason: str, images: Path) -> None:
    process = launch([*SMALL, *arguments], images, PYTHONPATH=str(images))
    process.join(60)
    assert process.exitcode == 2
    assert reason in (images / "output.txt").read_text()
    assert not list(images.glob("outputs/*/*"))


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["policy=gru", "minibatch_size=100"], ["minibatch_size"]),
        (["policy=gru", "policy.sequence_length=48", "minibatch_size=96"], ["collector.frames_per_batch"]),
        (["policy=normal", "policy.shared=true", "policy.actor_network._target_=torch.nn.Linear"], ["policy.shared"]),
        (["policy=cnn", "policy.strides=[1]", "policy.channels=[]"], ["policy.channels"]),
        (["policy=cnn", "policy.strides=[1]"], ["policy.strides"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: list[str], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(arguments)
    assert [problem.key for problem in caught.value.problems] == keys


def networks(*overrides: str) -> tuple[Any, ActorCritic]:
    """An environment and networks whose weights are no longer all alike."""
    torch.manual_seed(0)
    config = load_config(["env/transforms=none", "env.num_envs=4", *overrides])
    env = config.env.build(4)
    built = config.policy.build(env, CPU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return env, built


ACTORS = {
    "tanh_normal": ["env=hopper"],
    "tanh_normal, shared": ["env=hopper", "policy.shared=true"],
    "normal": ["env=hopper", "policy=normal"],
    "normal, dependent scale": ["env=hopper", "policy=normal", "policy.state_independent_scale=false"],
    "normal, elu": ["env=hopper", "policy=normal", "policy.activation_class=ELU"],
    "categorical": ["env=acrobot", "policy=categorical"],
    "categorical, wide": ["env=acrobot", "policy=categorical", "policy.num_cells=[256,256]"],
    "gru": ["env=hopper", "policy=gru"],
    "gru, shared": ["env=acrobot", "policy=gru", "policy.shared=true"],
    "lstm": ["env=hopper", "policy=lstm", "policy.distribution=normal"],
}


def batch_of(env: Any, built: ActorCritic, sequences: int) -> TensorDict:
    """Steps one after another, episodes beginning here and there, and what an actor of before thought of them."""
    n = sequences * built.sequence_length
    observation = torch.randn(n, *env.observation_spec_unbatched["observation"].shape)
    steps = TensorDict({"observation": observation, "action": env.action_spec_unbatched.rand((n,))}, [n])
    if STATE in built.actor.in_keys:
        steps["is_init"] = torch.rand(n, 1) < 0.1
        steps[STATE] = torch.randn(n, built.actor.module[0].module.state_size)
    steps["action_log_prob"] = torch.randn(n)
    return steps


@pytest.mark.parametrize("overrides", ACTORS.values(), ids=ACTORS)
def test_terms_and_gradients_are_those_of_torchrls_distribution(overrides: list[str]) -> None:
    env, built = networks(*overrides)
    batch = batch_of(env, built, 64)
    terms = policy_terms(built.actor)
    assert isinstance(terms, FamilyTerms)
    terms.prepare(batch)
    results = []
    for kind in (terms, DistributionTerms(built.actor, kl=False)):
        torch.manual_seed(1)
        entries = {key: batch[key] for key in kind.keys}
        if isinstance(kind, DistributionTerms) and built.sequence_length > 1:
            entries = {key: value.unflatten(0, (-1, built.sequence_length)) for key, value in entries.items()}
        log_prob, before, entropy, _ = kind(entries, entropy=True)
        assert entropy is not None
        log_ratio = (log_prob - before).flatten()
        gradients = torch.autograd.grad(
            log_ratio.square().mean() + entropy, list(built.actor.parameters()), allow_unused=True
        )
        results.append((log_ratio, entropy, gradients))
    (ratio, entropy, ours), (expected_ratio, expected_entropy, theirs) = results
    torch.testing.assert_close(ratio, expected_ratio, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("overrides", ACTORS.values(), ids=ACTORS)
def test_it_acts_as_torchrls_actor_does(overrides: list[str], deterministic: bool) -> None:
    """From the same noise: torch draws it alike at once and step by step where a step takes a multiple of 16."""
    env, built = networks(*overrides, "env.num_envs=16")
    shape = env.observation_spec_unbatched["observation"].shape
    observations, ended = torch.randn(5, 16, *shape), torch.rand(5, 16) < 0.2
    act = acting(built.actor, 16, deterministic=deterministic)
    torch.manual_seed(1)
    act.begin(5)
    ours = []
    for observation, end in zip(observations, ended, strict=True):
        ours.append(torch.from_numpy(act(observation.numpy()).copy()))
        act.restart(np.flatnonzero(end.numpy()))
    written = act.outputs(
        TensorDict({"observation": observations.swapaxes(0, 1), "action": torch.stack(ours, 1)}, [16, 5])
    )

    torch.manual_seed(1)
    carried: dict[str, torch.Tensor] = {}
    if STATE in built.actor.in_keys:
        state_size = built.actor.module[0].module.state_size
        carried = {STATE: torch.zeros(16, state_size), "is_init": torch.ones(16, 1, dtype=torch.bool)}
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    for t in range(5):
        with torch.no_grad(), set_exploration_type(kind):
            acted = built.actor(TensorDict({"observation": observations[t], **carried}, [16]))
        torch.testing.assert_close(ours[t], acted["action"], rtol=1e-4, atol=1e-5)
        for key in ("loc", "scale", "logits", "action_log_prob"):
            if key in acted:
                torch.testing.assert_close(written[key][:, t], acted[key], rtol=1e-4, atol=1e-4)
        if carried:
            torch.testing.assert_close(written[STATE][:, t].masked_fill(written["is_init"][:, t], 0),
                                       carried[STATE].masked_fill(carried["is_init"], 0))  # fmt: skip
            torch.testing.assert_close(written["next", STATE][:, t], acted["next", STATE])
            carried = {STATE: acted["next", STATE], "is_init": ended[t][:, None]}


def test_beta_is_torchs_beta_stretched_over_the_bounds() -> None:
    alpha, beta = 1 + 3 * torch.rand(7, 2), 1 + 3 * torch.rand(7, 2)
    low, high = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 4.0])
    ours = BoundedBeta(alpha, beta, low=low, high=high)
    stretch = distributions.AffineTransform(low, high - low, event_dim=1)
    unit = distributions.Independent(distributions.Beta(alpha, beta), 1)
    theirs = distributions.TransformedDistribution(unit, [stretch], validate_args=False)
    torch.manual_seed(0)
    action = ours.rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(action, theirs.rsample())
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), unit.entropy() + (high - low).log().sum())
    torch.testing.assert_close(ours.mean, low + (high - low) * alpha / (alpha + beta))
    assert ours.log_prob(high).isfinite().all()


def test_shared_trunk_is_one_and_trained_once() -> None:
    for overrides in (["env=hopper"], ["env=hopper", "policy=gru"], ["env=acrobot", "policy=categorical"]):
        _, separate = networks(*overrides, "policy.shared=false")
        _, shared = networks(*overrides, "policy.shared=true")
        both = set(shared.actor.parameters()) & set(shared.critic.parameters())
        assert len(shared.parameters()) == len(set(shared.parameters()))
        assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in separate.parameters())
        assert both
        for built in (separate, shared):
            actor, critic = built.split_parameters()
            assert not set(actor) & set(critic)
            assert len(actor) + len(critic) == len(built.parameters())
            assert set(built.parameters()) == {*built.actor.parameters(), *built.critic.parameters()}
        assert not both & set(shared.split_parameters()[1])
        assert set(separate.split_parameters()[1]) == set(separate.critic.parameters())


def test_actions_are_clipped_by_the_environment_and_nowhere_else(tmp_path: Path) -> None:
    """Pendulum applies torques up to 2; the batch holds what was sampled, and its log-probability."""
    config = load_config(["env=pendulum", "policy=normal", *SMALL, "policy.scale_lb=20"])
    trainer = Trainer(config, tmp_path)
    batch = next(iter(trainer.collector))
    assert batch["action"].abs().max() > 10
    assert np.abs(trainer.env.base_env.arrays.action).max() <= 2
    normal = distributions.Normal(batch["loc"], batch["scale"])
    torch.testing.assert_close(batch["action_log_prob"], normal.log_prob(batch["action"]).sum(-1))
    stepped = trainer.env.base_env.step(trainer.env.base_env.reset().set("action", torch.full((4, 1), 50.0)))
    assert stepped["action"].max() == 50
    assert np.abs(trainer.env.base_env.arrays.action).max() == 2
    trainer.close()


RECURRENT = [
    ["env=position_only_cartpole", "policy=gru"],
    ["env=hopper", "env.max_episode_steps=20", "policy=lstm", "policy.shared=true"],
    ["env=hopper", "env.max_episode_steps=20", "policy=gru", "policy.distribution=normal", "collector=sync"],
]


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "sync"])
def test_first_importance_ratios_are_one(overrides: list[str], tmp_path: Path) -> None:
    """In the first batch and a later one, which begins in mid-episode with a memory of it."""
    trainer = Trainer(load_config([*overrides, *SMALL, "optim.lr=0.01"]), tmp_path)
    for _ in range(2):
        batch = trainer.collect()
        loss = trainer.learner.minibatch_loss
        loss.prepare(batch)
        trainer.learner.advantage(batch)
        for minibatch in trainer.learner.minibatches(batch):
            torch.testing.assert_close(loss.losses(minibatch)["log_weight"], torch.zeros(64), rtol=0, atol=2e-5)
        trainer.update(batch)
    assert batch["is_init"][:, 1:].any()
    assert not batch["is_init"][:, 0].all()
    assert batch[STATE][:, 0].abs().max() > 0
    trainer.close()


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "sync"])
def test_values_are_those_of_stepping_through_every_episode(overrides: list[str], tmp_path: Path) -> None:
    """At every step, and where an episode is truncated or the batch ends, one step further than the memory has seen."""
    trainer = Trainer(load_config([*overrides, *SMALL, "loss.lmbda=0"]), tmp_path)
    trainer.collect()
    batch = trainer.collect()
    trainer.learner.advantage(batch)
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


@pytest.mark.parametrize("overrides", RECURRENT, ids=["gru", "lstm", "sync"])
def test_resumed_run_remembers_what_the_run_did(overrides: list[str], tmp_path: Path) -> None:
    """Every number and the final state are the same; without what is remembered they are not."""
    config = load_config([*overrides, *SMALL, "total_frames=1024", "env.max_episode_steps=40"])

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
def test_memory_forgets_at_the_beginning_of_an_episode_and_nowhere_else(layer: str) -> None:
    _, built = networks("env=hopper", f"policy={layer}")
    memory = built.critic.module.memory
    observation, state = torch.randn(3, 8, 11), torch.randn(3, memory.state_size)
    is_init = torch.zeros(3, 8, 1, dtype=torch.bool)
    is_init[0, 3], is_init[1, 0], is_init[2, 3], is_init[2, 6] = True, True, True, True
    whole = memory.sequences(observation, is_init, state)
    remembered = state
    for t in range(8):
        features, remembered = memory.step(observation[:, t], is_init[:, t], remembered)
        torch.testing.assert_close(features, whole[:, t])
    alone = memory.sequences(observation[:1, 3:], torch.zeros(1, 5, 1, dtype=torch.bool), torch.zeros_like(state[:1]))
    torch.testing.assert_close(whole[:1, 3:], alone)


def test_minibatches_of_a_memory_are_whole_sequences(tmp_path: Path) -> None:
    trainer = Trainer(load_config(["env=hopper", "policy=gru", "policy.sequence_length=8", *SMALL]), tmp_path)
    batch = trainer.collect()
    trainer.learner.minibatch_loss.prepare(batch)
    trainer.learner.advantage(batch)
    number = torch.arange(256).reshape(4, 64)
    batch.set("latent", number[..., None].float())
    seen = torch.cat([minibatch["latent"].reshape(-1, 8) for minibatch in trainer.learner.minibatches(batch)])
    assert (seen.diff(dim=1) == 1).all()
    assert (seen[:, 0] % 8 == 0).all()
    assert sorted(seen.flatten().tolist()) == list(range(256))
    assert seen[:, 0].tolist() != sorted(seen[:, 0].tolist())
    trainer.close()


FEEDFORWARD = [["env=acrobot", "policy=categorical"], ["env=hopper", "policy=normal"]]


@pytest.fixture(scope="module", params=[*RECURRENT[:2], *FEEDFORWARD], ids=["gru", "lstm", "categorical", "normal"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(
        load_config([*request.param, *SMALL, "optim.lr=0.01"]), tmp_path_factory.mktemp("trained") / "run"
    )
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


def test_loaded_policy_with_a_memory_remembers_each_of_a_batch(trained: Trainer) -> None:
    policy = load_policy(trained.run.path)
    if not policy.recurrent:
        pytest.skip("has no memory")
    first, second = torch.randn(2, 3, *policy.observation_shape).double()
    alone = [policy(row) for row in first]
    policy.reset()
    policy(first)
    with pytest.raises(ValueError, match=r"reset\(\) forgets"):
        policy(first[:2])
    policy.reset(torch.tensor([False, True, False]))
    remembered = policy._recurrent_state
    assert remembered is not None
    assert remembered[0].abs().max() > 0
    assert remembered[1].abs().max() == 0
    assert policy(second).shape[0] == 3
    assert len(alone) == 3


def test_export_takes_policies_without_memory_only(trained: Trainer, tmp_path: Path) -> None:
    agent = Agent(trained.run.path)
    if trained.networks.sequence_length == 1:
        export_policy(agent, "torch", tmp_path / "policy.pt2")
    else:
        with pytest.raises(ExportError, match="a recurrent policy"):
            export_policy(agent, "torch", tmp_path / "policy.pt2")


def test_shared_trunk_goes_into_a_checkpoint_and_out(tmp_path: Path) -> None:
    config = [*RECURRENT[1], *SMALL]
    first = Trainer(load_config(config), tmp_path / "first")
    first.fit()
    warm = Trainer(load_config([*config, "seed=5", f"warm_start={tmp_path / 'first'}"]), tmp_path / "second")
    assert torch.equal(warm.learner.weights, first.learner.weights)
    assert json.loads((tmp_path / "first" / "summary.json").read_text())["status"] == "completed"
    warm.close()
