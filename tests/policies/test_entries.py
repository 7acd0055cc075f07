"""Networks over several entries: what they compute, what each of them sees, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import parts
import pytest
import torch
from agents import CPU, composed, ppo_learner
from numpy.testing import assert_allclose
from tensordict import TensorDict

from rlexp import Trainer, load_config
from rlexp.collectors.sync import SyncCollector
from rlexp.config import ConfigError
from rlexp.kernels.gradient import WrittenOutGradient
from rlexp.kernels.rollout import RolloutCollector
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import recurrent_network

SMALL = [
    *("env.num_envs=4", "collector.frames_per_batch=64", "minibatch_size=32", "num_epochs=2", "total_frames=128"),
    *("env.init_random_steps=16", "evaluation.episodes=2", "logger=none", "threads=1", "device=cpu", "optim.lr=1e-3"),
]
PRIVILEGED = ["policy.actor_keys=[arm,mode]", "policy.critic_keys=[arm,secret]"]
ENCODERS = [
    "policy.encoders.camera={_target_: rlexp.policies.encoders.CNN, channels: [2], kernel_sizes: [4], strides: [2]}",
    "policy.encoders.arm={_target_: rlexp.policies.encoders.MLP, num_cells: [5,4]}",
    "policy.encoders.secret._target_=rlexp.policies.encoders.Identity",
]


def built(*overrides: str) -> ActorCritic:
    config = composed(*parts.ENV, *overrides)
    torch.manual_seed(0)
    return config.policy.build(config.env.build(1), CPU)


def entries(count: int) -> TensorDict:
    torch.manual_seed(1)
    camera = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    sizes = {"arm": 3, "mode": 3, "secret": 3}
    return TensorDict({"camera": camera, **{key: torch.randn(count, n) for key, n in sizes.items()}}, [count])


def convolved(image: Any, stride: int, weight: Any, bias: Any) -> Any:
    """A convolution as a sum over windows, and ReLU."""
    size = weight.shape[-1]
    places = range(0, image.shape[-1] - size + 1, stride)
    windows = np.stack([[image[:, :, i : i + size, j : j + size] for j in places] for i in places])
    return np.maximum(np.einsum("ijnchw,ochw->noij", windows, weight) + bias[:, None, None], 0)


def test_images_beside_vectors_are_convolved_and_put_before_the_hidden_layers() -> None:
    actor = built(*parts.SMALL_CNN, "policy.distribution=normal", "policy.last_layer_gain=1.0").actor
    steps = entries(6)
    found = actor.get_dist_params(steps)["loc"].detach().numpy()
    convolution, hidden, last = (
        [value.detach().double().numpy() for value in layer.parameters()]
        for layer in actor.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    )  # fmt: skip
    image = steps["camera"].double().numpy() / 255
    features = convolved(image, 2, *convolution).reshape(6, -1)
    vectors = [steps[key].double().numpy() for key in ("arm", "mode", "secret")]
    read = np.concatenate([vectors[0], features, *vectors[1:]], -1)  # in the order of the names
    expected = np.maximum(read @ hidden[0].T + hidden[1], 0) @ last[0].T + last[1]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overrides", [PRIVILEGED, ["policy.actor_keys=[camera,mode]", *ENCODERS]])
def test_what_is_for_the_critic_alone_has_no_part_in_the_actor(overrides: list[str]) -> None:
    networks = built(*overrides)
    steps = entries(5)
    floats = {key: value.requires_grad_() for key, value in steps.items() if value.is_floating_point()}
    own = set(networks.actor.in_keys)
    parameters = networks.actor.get_dist_params(steps)
    total = parameters["loc"].sum() + parameters["scale"].sum()
    grads = torch.autograd.grad(total, list(floats.values()), allow_unused=True)
    assert {key for key, grad in zip(floats, grads, strict=True) if grad is not None} == own & floats.keys()
    networks.actor(steps.select(*own))  # needs nothing else
    value = networks.critic(steps)["state_value"].sum()
    (grad,) = torch.autograd.grad(value, [floats["secret"]])
    assert grad.abs().sum() > 0


def test_a_recurrent_actor_needs_nothing_of_what_a_feed_forward_critic_reads() -> None:
    networks = built("policy=gru", *PRIVILEGED, "policy.recurrent_critic=false")
    assert networks.actor.in_keys == ["arm", "mode", "is_init", "recurrent_state"]
    assert networks.critic.in_keys == ["arm", "secret"]
    core = recurrent_network(networks.actor)
    assert core is not None
    assert core.state_size == 64
    actor, critic = (set(map(id, parameters)) for parameters in networks.split_parameters())
    assert actor == set(map(id, networks.actor.parameters()))
    assert not actor & critic


KINDS = {
    "image and vectors": parts.SMALL_CNN,
    "asymmetric": [*PRIVILEGED, "loss.entropy_coeff=0.01"],
    "recurrent": ["policy=gru", "policy.sequence_length=8", "policy.hidden_size=8", *ENCODERS],
    "recurrent, asymmetric": [
        *("policy=gru", "policy.sequence_length=8", "policy.hidden_size=8"),
        *(*PRIVILEGED, "policy.recurrent_critic=false"),
    ],
    "npg": ["loss=npg", *PRIVILEGED],
    "reppo": ["loss=reppo", *PRIVILEGED],
}


@pytest.mark.parametrize("name", KINDS)
def test_kernels_change_nothing_that_is_learned(name: str, tmp_path: Path) -> None:
    trainers, rows = [], []
    for kernels in ("auto", "false"):
        trainers.append(Trainer(composed(*parts.ENV, *SMALL, *KINDS[name], f"kernels={kernels}"), tmp_path / kernels))
        rows.append([trainers[-1].iterate() for _ in range(2)])
        trainers[-1].close()
    fast, reference = trainers
    torch.testing.assert_close(fast.learner.weights, reference.learner.weights, rtol=0, atol=1e-5)
    for found, expected in zip(*rows, strict=True):
        del found["train/parameters_hash"], expected["train/parameters_hash"]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for key, statistic in reference.env.transform.state_dict().items():
        torch.testing.assert_close(fast.env.transform.state_dict()[key], statistic, rtol=1e-5, atol=1e-6)
    assert (type(fast.collector), type(reference.collector)) == (RolloutCollector, SyncCollector)
    if name == "asymmetric":  # vectors are put one after another, and the rest is plain
        assert isinstance(ppo_learner(fast).gradient, WrittenOutGradient)


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["policy.actor_keys=[arms]"], r"policy\.actor_keys=arms\n(.|\n)*no such entry. Did you mean arm"),
        (["policy.critic_keys=[secrets]", *parts.SMALL_CNN], "no such entry. Did you mean secret"),
        (["policy.actor_keys=[]"], r"policy\.actor_keys"),
        ([*PRIVILEGED, "policy.shared=true"], r"must be policy\.actor_keys, \[arm,mode\], with policy\.shared=true"),
        ([*PRIVILEGED, "policy=gru"], r"must be policy\.actor_keys, \[arm,mode\], with policy\.recurrent_critic=true"),
        (["policy=gru", "policy.shared=true", "policy.recurrent_critic=false"], r"recurrent_critic=false\n.*shares"),
        ([], r"policy\.encoders\.camera\n(.|\n)*uint8 \[1, 8, 8\](.|\n)*policy=cnn"),
        (["policy.actor_keys=[camera]"], r"reads vectors, and this environment's camera has shape \[1, 8, 8\]"),
        ([*PRIVILEGED, "policy=cnn", "policy.shared=false"], r"reads images(.|\n)*environment's arm has shape \[3\]"),
        ([*parts.SMALL_CNN, "policy.kernel_sizes=[9]"], "too small for kernels"),
        ([*PRIVILEGED, f"policy.encoders.camera._target_={__name__}.Scalar"], "camera\n    is no entry that is read"),
        ([*PRIVILEGED, "policy.encoders.arm._target_=rlexp.policies.encoders.CNN"],
         r"policy\.encoders\.arm(.|\n)*images \[channels, height, width\], and it has shape \[3\]"),
        ([*PRIVILEGED, "policy.encoders.arm={_target_: rlexp.policies.encoders.MLP, cells: [3]}"], "no such parameter"),
        ([*PRIVILEGED, "policy.encoders.arm={_target_: rlexp.policies.encoders.MLP, activation_class: Module}"],
         "activation_class=Module is none of"),
        ([*PRIVILEGED, "policy.encoders.arm={_target_: rlexp.policies.encoders.MLP, num_cells: []}"],
         r"num_cells=\[\] needs the width of at least one layer"),
        ([*PRIVILEGED, "policy.encoders.arm={_target_: rlexp.policies.encoders.MLP, num_cells: [0, 4]}"],
         r"num_cells=\[0, 4\] needs(.|\n)*none below 1"),
        ([*PRIVILEGED, f"policy.encoders.arm._target_={__name__}.Nothing"], r"and gives \[2, 0\] for n = 2"),
        ([*PRIVILEGED, "policy.encoders.arm._target_=torch.nn.Flatten"], r"refused its arguments(.|\n)*shape"),
        ([*PRIVILEGED, f"policy.encoders.arm._target_={__name__}.Scalar"], r"must give features \[n, features\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(overrides: list[str], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        checked(*overrides)


def checked(*overrides: str) -> None:
    config = load_config([*parts.ENV, *overrides])
    config.policy.build(config.env.build(1), CPU)


class Scalar(torch.nn.Module):
    def __init__(self, shape: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


class Nothing(Scalar):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :0]


@pytest.mark.parametrize("reader", ["actor", "critic"])
def test_a_matrix_by_itself_is_read_beside_an_image(reader: str, tmp_path: Path) -> None:
    entry = {"actor": "camera", "critic": "camera", reader: "plan"}
    keys = [f"policy.{which}_keys=[{entry[which]}]" for which in ("actor", "critic")]
    env = ["env=gym", "env.id=Plans-v0", "env.name=plans"]
    trainer = Trainer(load_config([*SMALL, *env, *parts.SMALL_CNN, *keys, "policy.shared=false"]), tmp_path)
    *_, row = trainer
    trainer.close()
    assert "eval/return" in row


SCALED = "env.transforms.norm={_target_: torchrl.envs.ObservationNorm, loc: 0.0, scale: 0.004, in_keys: [image]}"


@pytest.mark.parametrize("entry", ["image", "observation"])
@pytest.mark.parametrize("network", [parts.SMALL_CNN, ["policy=normal", ENCODERS[0].replace("camera", "image")]])
def test_integers_that_convolutions_would_not_divide_are_refused(entry: str, network: list[str]) -> None:
    lone = entry == "observation"
    named = [o.replace("image", entry) for o in (*network, SCALED)]
    overrides = ["env=gym", "env.id=Depth-v0", "env/transforms=none", *named[:-1]]
    config = load_config([*overrides, f"env.kwargs.lone={lone}"])
    with pytest.raises(ConfigError, match=rf"read bytes \(uint8\).*{entry} has integers of another type"):
        config.policy.build(config.env.build(1), CPU)
    config = load_config([*overrides, f"env.kwargs.lone={lone}", named[-1]])
    config.policy.build(config.env.build(1), CPU)


def test_channels_last_are_named_with_the_remedy() -> None:
    from gymnasium import spaces

    more: dict[str, Any] = {"colours": spaces.Box(0, 255, (8, 8, 3), np.uint8)}
    config = composed(*parts.ENV, *parts.SMALL_CNN)
    config = config.model_copy(update={"env": config.env.model_copy(update={"kwargs": more})})
    with pytest.raises(ConfigError, match=r"channels last(.|\n)*in_keys: \[colours\]"):
        config.policy.build(config.env.build(1), CPU)
