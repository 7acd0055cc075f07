"""A policy outside its environment acts as it does inside, or is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from commands import TINY, run_command
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from rlexp import Trainer, load_config, load_policy
from rlexp.agent import Agent, UnfaithfulPolicyError, export
from rlexp.agent.export import ExportError, export_policy
from rlexp.cli.export import export as command
from rlexp.config import ConfigError

END = {
    "double_to_float": {"_target_": "torchrl.envs.DoubleToFloat"},
    "step_counter": {"_target_": "torchrl.envs.StepCounter"},
    "reward_sum": {"_target_": "torchrl.envs.RewardSum"},
}
PUSHER = ("env=gym", "env.id=Pusher-v5", "policy.last_layer_gain=5.0")
NORM = {"_target_": "rlexp.envs.normalization.RunningObservationNorm", "in_keys": ["observation"], "clip": 10.0}
CLIP = {"_target_": "torchrl.envs.ClipTransform", "in_keys": ["observation"], "low": -0.25, "high": 0.25}
FRAMES = {"_target_": "torchrl.envs.CatFrames", "N": 3, "dim": -1, "in_keys": ["observation"]}
TIME = {
    "_target_": "torchrl.envs.CatTensors",
    "in_keys": ["observation", "step_count"],
    "out_key": "observation",
    "del_keys": False,
}
VECNORM = {"_target_": "torchrl.envs.VecNormV2", "in_keys": ["observation"], "decay": 1.0, "reduce_batch_dims": True}


def trained(folder: Path, transforms: dict[str, Any], env: tuple[str, ...] = ()) -> Path:
    """A tiny run with transforms of the user's own."""
    brief = ["total_frames=256", "evaluation.episodes=1", "collector=sync", "logger=none"]
    values = copy.deepcopy(load_config([*TINY, *env, *brief]).to_dict())
    values["env"]["transforms"] = transforms
    Trainer.from_config(values, folder).fit()
    return folder


def steps(run_dir: Path, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What an agent saw and did in some steps, all simulators together."""
    seen, actions, _ = Agent(run_dir).rollout(40, seed)
    return {key: rows.flatten(0, 1) for key, rows in seen.items()}, actions.flatten(0, 1)


def gymnasium_returns(env_id: str, seeds: list[int], act: Any) -> list[float]:
    """Whole episodes in plain Gymnasium."""
    returns = []
    for seed in seeds:
        env = gymnasium.make(env_id)
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def test_onnx_file_earns_the_evaluation_in_plain_gymnasium(tiny_run: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-export", f"checkpoint={tiny_run}", "out=deep/policy.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["policy.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "policy.onnx")
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("observation", "tensor(double)", ["batch", 9])
    assert (made.name, made.type, made.shape) == ("action", "tensor(float)", ["batch", 1])

    evaluated = run_command("rlexp-eval", f"checkpoint={tiny_run}", cwd=tmp_path)
    result = json.loads(evaluated.stdout.splitlines()[-1])

    def act(observation: Any) -> Any:
        return session.run(["action"], {"observation": observation[None]})[0][0]

    returns = gymnasium_returns("InvertedDoublePendulum-v5", result["seeds"], act)
    assert returns == pytest.approx(result["returns"], rel=1e-4)
    far = np.full((5, 9), 1e6)
    actions = session.run(["action"], {"observation": far})[0]
    assert actions.shape == (5, 1)
    assert np.all(np.abs(actions) <= 1)


def test_nothing_is_exported_through_a_link(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    for kind in ("onnx", "pt2"):
        (tmp_path / "out" / f".policy.{kind}.{os.getpid()}.tmp.pt2").symlink_to(victim)
    monkeypatch.setattr("rlexp.agent.export.CHECKED", 10)
    export_policy(Agent(tiny_run), "torch", tmp_path / "out" / "policy.pt2")
    assert victim.read_text() == "precious"
    assert "policy.pt2" in {path.name for path in (tmp_path / "out").iterdir()}


def test_torch_file_needs_nothing_but_torch(tiny_run: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-export", f"checkpoint={tiny_run}", "format=torch", "out=policy.pt2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    observations = torch.randn(7, 9, dtype=torch.float64)
    torch.save(observations, tmp_path / "observations.pt")
    program = (
        "import sys, torch\n"
        "policy = torch.export.load('policy.pt2').module()\n"
        "observations = torch.load('observations.pt')\n"
        "torch.save([policy(observations), policy(observations[:1])], 'actions.pt')\n"
        "assert not {'rlexp', 'torchrl', 'tensordict'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    many, one = torch.load(tmp_path / "actions.pt")
    expected = load_policy(tiny_run)(observations)
    torch.testing.assert_close(many, expected)
    torch.testing.assert_close(one, expected[:1])


@pytest.mark.usefixtures("quickly_checked")
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_export_that_differs_is_refused_with_figures(
    kind: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, path = Agent(tiny_run), tmp_path / "policy"
    path.write_text("the previous one")
    rollout = agent.rollout

    def shifted(steps: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        seen, actions, ends = rollout(steps, seed)
        return seen, actions + 0.0625 * (actions[..., 0].numel() >= export.CHECKED), ends

    monkeypatch.setattr(agent, "rollout", shifted)
    with pytest.raises(ExportError, match=r"over 51 observations an action differs by up to 0\.031\d of its range"):
        export_policy(agent, kind, path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["the previous one"]


@pytest.mark.usefixtures("quickly_checked")
def test_transforms_of_the_users_own_are_inside(tmp_path: Path) -> None:
    run_dir = trained(tmp_path / "run", {"clip": CLIP, "norm": NORM, **END})
    policy = load_policy(run_dir)
    outside = torch.full((1, 9), 5.0, dtype=torch.float64)
    assert torch.equal(policy(outside), policy(outside.clamp(-0.25, 0.25)))
    path = export_policy(Agent(run_dir), "torch", tmp_path / "policy.pt2")
    seen, actions = steps(run_dir, seed=3)
    torch.testing.assert_close(torch.export.load(path).module()(*seen.values()), actions)


@pytest.mark.usefixtures("quickly_checked")
def test_actions_leave_in_the_environments_own_bounds_and_shape(tmp_path: Path) -> None:
    run_dir = trained(
        tmp_path / "run", {"norm": NORM, **END}, ("env=gym", "env.id=Pusher-v5", "policy.last_layer_gain=5.0")
    )
    path = export_policy(Agent(run_dir), "onnx", tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(path)
    seen, actions = steps(run_dir, seed=5)
    assert actions.shape == (40, 7)
    np.testing.assert_allclose(session.run(None, {"observation": seen["observation"].numpy()})[0], actions, atol=1e-5)
    far = session.run(None, {"observation": 1e6 * np.random.default_rng(0).normal(size=(100, 23))})[0]
    assert np.abs(far).max() <= 2  # Pusher's bound
    assert np.abs(far).max() > 1


class WidePendulum(PendulumEnv):  # type: ignore[misc]
    """Takes actions in float64, which the run's transforms make of the policy's float32."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), dtype=np.float64)


@pytest.mark.usefixtures("quickly_checked")
def test_transforms_of_the_action_are_inside(tmp_path: Path) -> None:
    gymnasium.register("WidePendulum-v0", WidePendulum, max_episode_steps=20)
    run_dir = trained(tmp_path / "run", {"norm": NORM, **END}, ("env=gym", "env.id=WidePendulum-v0"))
    policy = load_policy(run_dir)
    seen, actions = steps(run_dir, seed=3)
    observations = seen["observation"]
    assert (observations.dtype, actions.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(policy(observations), actions, atol=1e-6, rtol=0)
    path = export_policy(Agent(run_dir), "torch", tmp_path / "policy.pt2")
    torch.testing.assert_close(torch.export.load(path).module()(observations), actions, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("transforms", "reason"),
    [
        ({"norm": NORM, **END, "frames": FRAMES}, "depends on earlier steps"),
        ({**END, "time": TIME}, "read step_count besides the observation"),
    ],
    ids=["frames", "time"],
)
def test_what_needs_more_than_the_observation_is_refused(
    transforms: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    run_dir = trained(tmp_path / "run", transforms)
    with pytest.raises(UnfaithfulPolicyError, match=reason):
        load_policy(run_dir)
    Agent(run_dir)  # in its environment it can still be evaluated
    with pytest.raises(UnfaithfulPolicyError, match=reason):
        command([f"checkpoint={run_dir}"])
    assert not list(run_dir.glob("*policy*"))


@pytest.mark.filterwarnings("ignore:Support of VecNormV2")
def test_statistics_that_cannot_be_frozen_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env\.transforms\.vec_norm\n.*env/transforms=running"):
        trained(tmp_path / "run", {"vec_norm": VECNORM, **END})


def test_policy_takes_arrays_and_tensors_and_refuses_other_shapes(tiny_run: Path) -> None:
    policy = load_policy(tiny_run)
    observation = np.random.default_rng(0).normal(size=(2, 3, 9))
    action = policy(observation)
    assert isinstance(action, np.ndarray)
    assert action.shape == (2, 3, 1)
    assert np.array_equal(action, policy(torch.from_numpy(observation)).numpy())
    np.testing.assert_allclose(policy(observation.astype(np.float32)), action, atol=1e-5)
    assert not policy(torch.zeros(9)).requires_grad
    for wrong in (np.zeros(11), np.zeros((9, 1)), np.zeros(())):
        with pytest.raises(ValueError, match=r"this policy reads \[\.\.\., 9\]"):
            policy(wrong)


def test_missing_packages_are_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlexp.cli.export._NEEDED", ("onnx", "not_installed_here"))
    assert command([f"checkpoint={tmp_path}"]) == 1
    assert "pip install 'rlexp[export]'" in capsys.readouterr().err


def test_wrong_command_line_exits_2(tmp_path: Path) -> None:
    done = run_command("rlexp-export", "checkpoint=x", "format=torch", "out=policy.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert "must end in .pt2 with format=torch" in done.stderr
    nowhere = run_command("rlexp-export", "checkpoint=x", cwd=tmp_path)
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith("rlexp-export: x is neither a checkpoint")
    assert "Traceback" not in nowhere.stderr
