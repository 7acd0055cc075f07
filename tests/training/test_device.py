"""Training on a device that is none (`pretended`): no operation mixes it with the host, and nothing depends on it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, rows_of, run_command
from pretended import MixedDevicesError, Pretended, pretended_device

from rlexp import Trainer, load_config
from rlexp.agent import Agent
from rlexp.agent.evaluation import evaluate, evaluation_seeds
from rlexp.collectors import Source
from rlexp.envs.normalization import commit_normalization, init_normalization, observation_norms
from rlexp.kernels.acting import acting
from rlexp.policies.recurrent import carry_state
from rlexp.training.learners import build_learner

SMALL = [
    *("env.num_envs=4", "collector.frames_per_batch=64", "minibatch_size=32", "num_epochs=2", "compile=false"),
    *("policy.num_cells=[8]", "env.init_random_steps=30", "env.transforms.step_counter.max_steps=20", "threads=1"),
    *("evaluation.episodes=1", "evaluation.interval=100_000", "logger=none", "total_frames=128"),
]
CARTPOLE = ["env=torch_cartpole", *SMALL]
SLIDER = ["env=torchrl", "env.make={_target_: slider.Slider, num_envs: 4, device: auto}", "collector=device", *SMALL]
CASES = {
    "clip_ppo": SLIDER,
    "categorical": CARTPOLE,
    "trpo": [*SLIDER, "loss=trpo", "policy=normal", "policy.num_cells=[8]"],
}


def updates(overrides: list[str], device: torch.device) -> list[Any]:
    """Two batches, and the metrics of learning from them."""
    config = load_config(overrides)
    torch.manual_seed(0)
    source = Source(config.env.on(device), config.policy, 0, True)
    env = source.env.build(config.env.num_envs)
    env.set_seed(1)
    init_normalization(env, 30)
    networks = config.policy.build(env, device)
    carry_state(env, networks.actor)
    learner = build_learner(config, networks, device, env)
    batches = iter(config.collector.build(env, networks.actor, source, device))
    found: list[Any] = []
    for progress in (0, 0.5):
        batch = next(batches)
        found.append({key: batch[key].clone() for key in batch.keys(True, True)})
        found.append(learner.update(batch, progress))
        commit_normalization(env)
    tensors = [batch["next", "observation"], learner.weights]
    tensors += [value for norm in observation_norms(env) for value in norm.state_dict().values()]
    assert {tensor.device for tensor in tensors} == {device}
    return found


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_batches_and_updates_on_a_device_are_those_of_the_cpu(overrides: list[str]) -> None:
    expected = updates(overrides, torch.device("cpu"))
    with pretended_device() as device:
        found = updates(overrides, device)
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, torch.Tensor):
                assert isinstance(b[key], Pretended)
                torch.testing.assert_close(value, b[key].held, rtol=1e-5, atol=1e-6)
            else:
                assert b[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_choices_of_simulators_on_the_host_are_made_on_the_device() -> None:
    config = load_config(["env=gym", "env.id=choosing:Choosing-v0", "env.kwargs.action=multi", "policy=categorical"])
    env = config.env.build(2)
    init_normalization(env, 20)
    chosen = []
    for device in (torch.device("cpu"), None):
        with pretended_device() if device is None else nullcontext(device) as placed:
            torch.manual_seed(0)
            act = acting(config.policy.build(env, placed).actor, 2, ["observation"], deterministic=True)
            act.begin(0)
            chosen.append(act(np.ones((2, 3), np.float32)))
    assert np.array_equal(chosen[0], chosen[1])
    env.close()


def test_the_pretended_device_refuses_the_hosts_tensors() -> None:
    with pretended_device() as device, pytest.raises(MixedDevicesError):
        torch.ones(3, device=device) + torch.ones(3)
    with pretended_device() as device, pytest.raises(AssertionError, match="no array"):
        torch.ones(3, device=device).numpy()


@pytest.mark.filterwarnings("ignore:.*non-meta parameter:UserWarning")  # torch takes it for one without numbers
def test_a_run_on_a_device_resumes_exactly_and_is_evaluated_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_device() as device:
        monkeypatch.setattr("rlexp.training.parts.pick_device", lambda _: device)
        whole = Trainer.from_config(load_config(CARTPOLE), tmp_path / "whole").fit()
        part = Trainer.from_config(load_config(CARTPOLE), tmp_path / "part")
        part.iterate()
        part.save()
        part.close()
        again = Trainer.resume(tmp_path / "part")
        assert again.fit()["final"] == whole["final"]
        assert isinstance(again.learner.weights, Pretended)
    assert rows_of(tmp_path / "part") == rows_of(tmp_path / "whole")[1:]
    agent = Agent(tmp_path / "part")
    assert agent.env.device == torch.device("cpu")
    final = evaluate(agent.env, agent.networks.actor, evaluation_seeds(0, 1))
    assert final.metrics() == whole["final"]


def test_the_commands_train_and_evaluate_simulators_in_tensors(tmp_path: Path) -> None:
    options = [*TINY, "env=torch_cartpole", "env.transforms.step_counter.max_steps=20", "logger=none"]
    trained = run_command("rlexp-train", *options, "total_frames=256", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = run_command("rlexp-eval", "checkpoint=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'"mean_return": {rows_of(tmp_path / "run")[-1]["eval/return"]}' in done.stdout
