"""``kernels=auto`` and ``kernels=false``: two ways to one and the same training, for every policy and every loss."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from agents import composed, ppo_learner

from rlexp import Trainer
from rlexp.collectors.sync import SyncCollector
from rlexp.config import conf_dir
from rlexp.kernels.gradient import WrittenOutGradient
from rlexp.kernels.losses import FastLoss
from rlexp.kernels.rollout import RolloutCollector
from rlexp.kernels.scan import FastAdvantage
from rlexp.losses.advantages import AdvantageEstimator
from rlexp.losses.module import AutogradGradient

SMALL = [
    *("env.num_envs=4", "collector.frames_per_batch=64", "minibatch_size=32", "num_epochs=2", "total_frames=128"),
    *("env.init_random_steps=16", "evaluation.episodes=2", "logger=none", "threads=1", "device=cpu"),
    *("env.max_episode_steps=12", "policy.num_cells=[8]", "optim.lr=1e-3"),
]
HOPPER, CARTPOLE = "env=hopper", "env=cartpole"
GRU = ["policy=gru", "policy.sequence_length=8", "policy.hidden_size=8"]
LSTM = ["policy=lstm", "policy.sequence_length=8", "policy.hidden_size=8"]
PIXELS = [CARTPOLE, "env.from_pixels=true", "env/transforms=none", "env.pixels.size=16"]
TEACHER = Path(__file__).parents[1] / "data" / "run_of_format_3"
TAUGHT = ["env=inverted_double_pendulum", "loss=distill", f"loss.teacher={TEACHER}"]
TORCHRL = "loss.loss_module._target_=torchrl.objectives"
POLICIES = {
    "tanh_normal": [HOPPER],
    "normal": [HOPPER, "policy=normal", "loss.entropy_coeff=0.01"],
    "beta": [HOPPER, "policy=beta", "loss.entropy_coeff=0.01"],
    "action_value": [HOPPER, "loss=reppo", "policy=action_value", "policy.state_independent_scale=true"],
    "categorical": [CARTPOLE, "policy=categorical", "loss.entropy_coeff=0.01"],
    "gru": [HOPPER, *GRU],
    "lstm": [CARTPOLE, *LSTM, "policy.shared=true"],
    "cnn": [*PIXELS, "policy=cnn", "policy.channels=[4]", "policy.kernel_sizes=[8]", "policy.strides=[4]"],
}
LOSSES = {
    "clip_ppo": [HOPPER, "loss.entropy_coeff=0.01", "loss.clip_schedule=linear"],
    "kl_ppo": [HOPPER, "loss=kl_ppo", "loss.beta=5"],
    "a2c": [HOPPER, "loss=a2c", "num_epochs=1", "loss.normalize_advantage=true"],
    "reinforce": [HOPPER, "loss=reinforce", "num_epochs=1"],
    "any": [HOPPER, "loss=any", f"{TORCHRL}.PPOLoss"],
    "rpo": [HOPPER, "loss=rpo", "policy=normal"],
    "spo": [HOPPER, "loss=spo"],
    "distill": [*TAUGHT, "policy=tanh_normal"],
    "npg": [HOPPER, "loss=npg"],
    "trpo": [HOPPER, "loss=trpo"],
    "reppo": [HOPPER, "loss=reppo"],
}
OTHERS = {
    "shared": [HOPPER, "policy.shared=true", "loss.clip_value=0.2"],
    "state-dependent scale": [HOPPER, "policy.state_independent_scale=false", "optim.critic_lr=3e-3"],
    "vtrace": [HOPPER, "loss.estimator=vtrace", "loss.average_gae=true"],
    "vtrace, gru": [CARTPOLE, *GRU, "loss.estimator=vtrace"],
    "td0": [HOPPER, "loss.estimator=td0"],
    "kl_ppo, beta": [HOPPER, "policy=beta", "loss=kl_ppo", "loss.beta=5"],
    "kl_ppo, gru": [CARTPOLE, *GRU, "loss=kl_ppo", "loss.beta=5"],
    "distill, gru": [*TAUGHT, *GRU],
    "target_kl": [HOPPER, "target_kl=1e-6", "recompute_advantage=false"],
    "kl_adaptive": [HOPPER, "optim.schedule=kl_adaptive"],
    "any a2c": [HOPPER, "loss=any", f"{TORCHRL}.A2CLoss", "loss.loss_module.functional=false", "num_epochs=1"],
    "any reinforce": [HOPPER, "loss=any", f"{TORCHRL}.ReinforceLoss", "num_epochs=1"],
    "rewards in float64": ["env=pendulum", "~env.transforms.double_to_float"],
    "rewards in float64, critic apart": ["env=pendulum", "~env.transforms.double_to_float", "critic_num_epochs=2"],
    "unnormalised reward, one simulator": [HOPPER, "loss.normalize_reward=false", "env.num_envs=1"],
}


def trained(folder: Path, kernels: str, *overrides: str) -> tuple[Trainer, list[dict[str, float]]]:
    """Two whole batches, the second from statistics, recurrent states and weights that the first has left."""
    trainer = Trainer(composed(*SMALL, *overrides, f"kernels={kernels}"), folder / kernels)
    rows = [trainer.iterate() for _ in range(2)]
    trainer.close()
    return trainer, rows


@pytest.mark.parametrize("name", [*POLICIES, *LOSSES, *OTHERS])
def test_kernels_change_nothing_that_is_learned_or_logged(name: str, tmp_path: Path) -> None:
    if name == "cnn":
        pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    overrides = (POLICIES | LOSSES | OTHERS)[name]
    (fast, ours), (reference, theirs) = (trained(tmp_path, kernels, *overrides) for kernels in ("auto", "false"))
    torch.testing.assert_close(fast.learner.weights, reference.learner.weights, rtol=0, atol=1e-5)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.keys() == expected.keys()
        del found["train/parameters_hash"], expected["train/parameters_hash"]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for key, statistic in reference.env.transform.state_dict().items():
        torch.testing.assert_close(fast.env.transform.state_dict()[key], statistic, rtol=1e-5, atol=1e-6)
    assert theirs[0]["train/episode_length"] <= 12
    assert isinstance(reference.collector, SyncCollector)
    assert isinstance(fast.collector, RolloutCollector)
    if name in ("npg", "trpo", "reppo", "action_value"):
        return
    assert isinstance(ppo_learner(reference).advantage, AdvantageEstimator)
    assert isinstance(ppo_learner(reference).gradient, AutogradGradient)
    assert ppo_learner(reference).minibatch_loss is ppo_learner(reference).loss
    assert isinstance(ppo_learner(fast).advantage, FastAdvantage)
    assert isinstance(ppo_learner(fast).minibatch_loss, FastLoss) == (
        name not in ("any", "any reinforce", "rpo", "distill", "distill, gru")
    )


def test_every_policy_and_every_loss_is_among_them() -> None:
    for group, cases in (("policy", POLICIES), ("loss", LOSSES)):
        assert {path.stem for path in conf_dir().glob(f"{group}/*.yaml")} == cases.keys()


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("PPOLoss", {"objective", "critic", "entropy", "kl", "kl_approx", "ess"}),
        ("A2CLoss", {"objective", "critic", "entropy", "kl", "kl_approx", "ess"}),
        ("ReinforceLoss", {"actor", "value", "entropy", "kl", "kl_approx", "ess"}),
    ],
)
def test_every_scalar_of_any_loss_is_logged(name: str, logged: set[str], tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, HOPPER, "loss=any", f"{TORCHRL}.{name}", "num_epochs=1"), tmp_path)
    batch = trainer.collect()
    metrics = trainer.update(batch)
    steps = {key: batch[key].flatten(0, 1) for key in ppo_learner(trainer).loss.keys}
    record = ppo_learner(trainer).loss.losses(steps)
    trainer.close()
    found = {key.removeprefix("loss/") for key in metrics if key.startswith("loss/")}
    assert found == logged | {"explained_variance"}
    # The weighted bonus, loss_entropy, is logged as the entropy that it is made of.
    assert {key.removeprefix("loss_").lower() for key in record} <= found


def test_the_log_names_what_runs_and_why_not_where_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rlexp"):
        trainer = Trainer(composed(*SMALL, HOPPER, "loss.clip_value=0.2"), tmp_path / "auto")
    assert isinstance(ppo_learner(trainer).gradient, AutogradGradient)
    trainer.close()
    for part, name in {"collector": "RolloutCollector", "advantage": "FastGAE", "loss": "FastClipPPO"}.items():
        assert f"kernels=auto: {part} by {name}" in caplog.text
    assert "kernels=auto: no kernel for the gradient: loss.clip_value is set." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="rlexp"):
        trainer = Trainer(composed(*SMALL, HOPPER), tmp_path / "plain")
    assert isinstance(ppo_learner(trainer).gradient, WrittenOutGradient)
    trainer.close()
    assert "gradient by WrittenOutGradient" in caplog.text
    assert "no kernel" not in caplog.text
