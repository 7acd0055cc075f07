"""A simulator's state, out of one copy in the middle of an episode and into another that was never reset."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from warm import processes

from rlexp import load_config
from rlexp.envs import EnvConfig
from rlexp.envs.snapshot import StateUnavailableError


def assert_goes_on_exactly(spec: EnvConfig, steps: int = 12, more: int = 60) -> None:
    ours, copy = (spec.build_base(2) for _ in range(2))
    ours.set_seed(1)
    torch.manual_seed(0)
    before = ours.rollout(steps, break_when_any_done=False)[:, -1]["next"].exclude("reward")
    copy.load_simulator_state(ours.simulator_state())
    actions = [ours.action_spec.rand() for _ in range(more)]
    rows: list[TensorDictBase] = []
    for env in (ours, copy):
        tensordict = before.clone()
        seen: list[TensorDictBase] = []
        for action in actions:
            stepped, tensordict = env.step_and_maybe_reset(env.maybe_reset(tensordict).set("action", action))
            seen.append(stepped["next"].clone())
        rows.append(torch.stack(seen))
        env.close()
    assert (rows[0] == rows[1]).all()
    ended = rows[0].get("done").any()
    assert ended  # episodes that begin later need the generator


@pytest.mark.parametrize(
    "option",
    [
        *("cartpole", "acrobot", "pendulum", "mountain_car_continuous", "humanoid_standup", "pusher", "reacher"),
        *("swimmer", "walker2d"),
    ],
)
def test_gymnasium_goes_on_exactly(option: str) -> None:
    assert_goes_on_exactly(load_config([f"env={option}", "env.max_episode_steps=25"]).env)


def test_an_episode_that_has_just_ended_goes_on_exactly() -> None:
    assert_goes_on_exactly(load_config(["env=pendulum", "env.max_episode_steps=25"]).env, steps=25)


@pytest.mark.parametrize(
    ("domain", "task"), [("cartpole", "swingup"), ("humanoid", "run"), ("cheetah", "run"), ("ball_in_cup", "catch")]
)
def test_dm_control_goes_on_exactly(domain: str, task: str) -> None:
    pytest.importorskip("shimmy", reason="the extra rlexp[dm-control] is not installed")
    overrides = ["env=dm_control", f"env.domain={domain}", f"env.task={task}", "env.max_episode_steps=25"]
    assert_goes_on_exactly(load_config(overrides).env)


def test_what_cannot_be_saved_is_named() -> None:
    pytest.importorskip("shimmy", reason="the extra rlexp[dm-control] is not installed")
    for task, reason in {
        ("quadruped", "walk"): r"Physics\._sensor_types_to_names is a dict",
        ("reacher", "easy"): "changes its MuJoCo model as it runs",
    }.items():
        env = load_config(["env=dm_control", f"env.domain={task[0]}", f"env.task={task[1]}"]).env.build_base(1)
        env.reset()
        with closing(env), pytest.raises(StateUnavailableError, match=reason):
            env.simulator_state()


PIXELS = ["env.from_pixels=true", "env/transforms=none", "env.max_episode_steps=25", "env.pixels.size=24"]


def test_stacked_pictures_go_on_exactly() -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    assert_goes_on_exactly(load_config(["env=cartpole", *PIXELS]).env, more=20)


def stacked_pictures_go_on_exactly(overrides: list[str], folder: Path) -> None:
    os.environ["MUJOCO_GL"] = "egl"  # read when the renderer is first imported, hence a process of its own
    os.chdir(folder)
    assert_goes_on_exactly(load_config([*overrides, *PIXELS]).env, more=20)


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize(
    "overrides", [["env=inverted_pendulum"], ["env=dm_control", "env.domain=cartpole", "env.task=swingup"]]
)
def test_stacked_pictures_of_mujoco_go_on_exactly(overrides: list[str], tmp_path: Path) -> None:
    process = processes.Process(target=stacked_pictures_go_on_exactly, args=(overrides, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert not list(tmp_path.glob("MUJOCO_LOG*"))
