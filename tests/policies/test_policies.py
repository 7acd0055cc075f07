"""Policies train where they fit, and are refused, with what fits, where they do not."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from agents import networks
from torch import Tensor, nn

from rlexp import Trainer, load_config
from rlexp.config import ConfigError

SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=4", "minibatch_size=32", "num_epochs=2", "total_frames=128"),
    *("env.init_random_steps=32", "evaluation.interval=64", "evaluation.episodes=2", "logger=none", "threads=1"),
    "policy.num_cells=[16]",
]
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
def _images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images.py").write_text(IMAGES)
    monkeypatch.syspath_prepend(tmp_path)


PIXELS = ["env=gym", "env.id=images:Images-v0", "env/transforms=none"]
CNN = ["policy=cnn", "policy.channels=[4]", "policy.kernel_sizes=[8]", "policy.strides=[4]"]


# tests/kernels/test_select.py trains each policy by itself.
@pytest.mark.usefixtures("_images")
@pytest.mark.parametrize(
    "overrides",
    [
        ["env=gym", "env.id=images:Unbounded-v0", "policy=normal"],
        ["env=hopper", "policy=beta", "policy.activation_class=ELU", "policy.num_cells=[32]"],
        ["env=acrobot", "env.max_episode_steps=20", "policy.shared=true"],
        ["env=hopper", "policy=gru", "policy.distribution=normal"],
        ["env=cartpole", "policy=lstm", "loss=any", "loss.loss_module._target_=torchrl.objectives.PPOLoss"],
        [*PIXELS, *CNN],
        [*PIXELS, "env.kwargs.discrete=true", *CNN, "policy.shared=false"],
    ],
    ids=" ".join,
)
def test_policy_trains_and_is_evaluated(overrides: list[str], tmp_path: Path) -> None:
    recurrent = [] if not any(o in ("policy=gru", "policy=lstm") for o in overrides) else ["policy.sequence_length=8"]
    trainer = Trainer(load_config([*SMALL, *overrides, *recurrent]), tmp_path / "run")
    rows = list(trainer)
    trainer.close()
    assert rows[0]["train/parameters_hash"] != rows[1]["train/parameters_hash"]
    assert all("eval/return" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["env=cartpole", "policy=tanh_normal"], "tanh_normal is no distribution over this environment's actions, "
         "discrete, one of 2. What fits: policy=categorical, gru or lstm."),
        (["env=cartpole", "policy=gru", "policy.distribution=normal"], "normal is no distribution over"),
        (["env=hopper", "policy=categorical"], "within bounds, of shape [3]. What fits: policy=tanh_normal, normal, "
         "beta, gru or lstm."),
        (["env=hopper", "policy=cnn"], "reads images [channels, height, width], and this environment's observation"),
        (PIXELS, "reads vectors, and this environment's observation has shape [2, 36, 36]. What fits: policy=cnn."),
        ([*PIXELS, "policy=lstm"], "What fits: policy=cnn."),
        ([*PIXELS, "policy=cnn", "policy.kernel_sizes=[32,32,32]"], "is too small for kernels of [32, 32, 32]"),
        (["env=gym", "env.id=images:Unbounded-v0", "policy=beta"], "What fits: policy=normal, gru or lstm."),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_images")
def test_policy_that_cannot_act_is_refused_with_what_can(arguments: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(load_config([*SMALL, *arguments]), tmp_path / "run")
    assert reason in str(caught.value)
    assert not (tmp_path / "run" / "metadata.json").exists()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (f"{__name__}.lazy", r"has parameters without a size \(weight\): give layers the in_features"),
        (f"{__name__}.number", r"must build a torch\.nn\.Module, and built int"),
    ],
)
def test_an_own_network_that_is_none_yet_is_refused(target: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.critic_network\n *{told}"):
        networks("policy=normal", f"policy.critic_network._target_={target}", env="pendulum")


def lazy(in_features: int, out_features: int) -> nn.Module:
    return nn.LazyLinear(out_features)


def number(in_features: int, out_features: int) -> int:
    return in_features


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


def test_shared_trunk_is_one_and_trained_once() -> None:
    for overrides in (["env=hopper"], ["env=hopper", "policy=gru"], ["env=acrobot", "policy=categorical"]):
        env, *policy = overrides
        separate = networks(*policy, "policy.shared=false", env=env.removeprefix("env="))
        shared = networks(*policy, "policy.shared=true", env=env.removeprefix("env="))
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


def layers(module: nn.Module) -> list[tuple[int, str]]:
    """Width of each hidden layer, and what follows it."""
    found = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Tanh | nn.ReLU)]
    return [(a.out_features, type(b).__name__) for a, b in pairwise(found) if isinstance(a, nn.Linear)]


def test_the_critic_may_have_another_form_which_the_kernels_train_too(tmp_path: Path) -> None:
    form = ["policy.critic_num_cells=[24,12]", "policy.critic_activation_class=ReLU"]
    trained = {}
    for kernels in ("auto", "false"):
        trainer = Trainer(load_config([*SMALL, *form, f"kernels={kernels}"]), tmp_path / kernels)
        assert layers(trainer.networks.actor) == [(16, "Tanh")]
        assert layers(trainer.networks.critic) == [(24, "ReLU"), (12, "ReLU")]
        trainer.iterate()
        trained[kernels] = trainer.learner.weights.detach().clone()
        trainer.close()
    torch.testing.assert_close(trained["auto"], trained["false"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.shared=true", "policy.critic_num_cells=[8]"], r"critic_num_cells=\[8\]\n.*policy\.shared"),
        (["policy.critic_activation_class=Relu"], r"critic_activation_class=Relu\n.*no nonlinearity"),
        (["policy.critic_num_cells=[]"], "critic_num_cells"),
    ],
)
def test_a_form_that_no_critic_has_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides)


def test_layer_norm_is_before_each_nonlinearity() -> None:
    """Ba et al. 2016, eq. 4, of an actor and a critic whose weights are no longer those of the start."""
    built = networks("policy.layer_norm=true", "policy.num_cells=[6,5]", "policy.critic_num_cells=[4]")
    observation = torch.randn(7, 11)
    for network in (built.actor.module[0].module[0], built.critic.module):
        x = observation.double()
        weights = [parameter.detach().double() for parameter in network.parameters()]
        for weight, bias, gain, offset in zip(*[iter(weights[:-2])] * 4, strict=True):
            x = x @ weight.T + bias
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = (gain * x + offset).tanh()
        expected = x @ weights[-2].T + weights[-1]
        torch.testing.assert_close(network(observation).double(), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_between_networks_of_ones_own_is_refused() -> None:
    own = [f"policy.{which}_network={{_target_: torchrl.modules.MLP}}" for which in ("actor", "critic")]
    with pytest.raises(ConfigError, match=r"policy\.layer_norm"):
        load_config(["policy.layer_norm=true", "policy.orthogonal=false", *own])


class Mine(nn.Module):
    """A network of one's own, with weights of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        nn.init.constant_(self.layer.weight, 0.125)
        nn.init.constant_(self.layer.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        out: Tensor = self.layer(x)
        return out


class Reads(Mine):
    """An encoder of one's own."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(shape.numel(), 2)


@pytest.mark.parametrize("policy", ["normal", "gru"])
def test_networks_of_ones_own_start_as_they_are_made(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["policy.encoders.observation._target_=mine.Reads"]
    if policy == "normal":
        own += [f"policy.{which}_network._target_=mine.Mine" for which in ("actor", "critic")]
    module = ModuleType("mine")
    module.__dict__.update(Mine=Mine, Reads=Reads)
    monkeypatch.setitem(sys.modules, "mine", module)
    config = load_config([f"policy={policy}", "env=hopper", "env/transforms=none", *own])
    built = config.policy.build(config.env.build(1), torch.device("cpu"))
    found = {part for network in (built.actor, built.critic) for part in network.modules() if isinstance(part, Mine)}
    assert len(found) == (4 if policy == "normal" else 2)
    for part in found:
        assert (part.layer.weight == 0.125).all()
        assert (part.layer.bias == 0.5).all()
