"""A simulator's state, out of one copy in the middle of an episode and into another that was never reset."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from simulator_copies import PIXELS, assert_goes_on_exactly, stacked_images_go_on_exactly
from warm import processes

from rlexp import load_config
from rlexp.envs.saving import StateUnavailableError


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


def test_stacked_images_go_on_exactly() -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    assert_goes_on_exactly(load_config(["env=cartpole", *PIXELS]).env, more=20)


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize(
    "overrides", [["env=inverted_pendulum"], ["env=dm_control", "env.domain=cartpole", "env.task=swingup"]]
)
def test_stacked_images_of_mujoco_go_on_exactly(overrides: list[str], tmp_path: Path) -> None:
    process = processes.Process(target=stacked_images_go_on_exactly, args=(overrides, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert not list(tmp_path.glob("MUJOCO_LOG*"))
