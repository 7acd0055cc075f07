"""What simulators are handed, and what of theirs is checked: actions, keyword arguments, raw values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.gymnasium import BatchedGymEnv
from rlexp.envs.making import RepeatAction


class Recorder(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Keeps the actions that it is given, doubles them in place, and is rewarded by what it is made with."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.given: list[Any] = []
        self.values: list[list[float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.given.append(action)
        self.values.append(action.tolist())
        action *= 2
        return np.zeros(1, np.float32), float(self.arguments.get("repeat", 1)), False, False, {}


@pytest.fixture
def recorder() -> Iterator[str]:
    gymnasium.register("Recorder-v0", Recorder, max_episode_steps=20)
    yield "Recorder-v0"
    del gymnasium.registry["Recorder-v0"]


@pytest.mark.parametrize("frame_skip", [1, 3])
def test_every_step_is_given_an_action_of_its_own(frame_skip: int, recorder: str) -> None:
    env = BatchedGymEnv(recorder, num_envs=2, frame_skip=frame_skip)
    actions = [torch.full((2, 2), value) for value in (0.125, 0.25)]
    tensordict = env.reset()
    for action in actions:
        tensordict = env.step(tensordict.set("action", action))["next"]
    for simulator in env._simulators.envs:
        inner = simulator.unwrapped
        assert inner.values == [[value, value] for value in (0.125, 0.25) for _ in range(frame_skip)]
        assert [given.tolist() for given in inner.given] == [[2 * value for value in row] for row in inner.values]
    assert torch.equal(actions[1], torch.full((2, 2), 0.25))


def test_so_it_is_behind_the_camera() -> None:
    inner = Recorder()
    env = RepeatAction(inner, 3)
    env.reset()
    _, reward, *_ = env.step(np.full(2, 0.5, np.float32))
    assert inner.values == [[0.5, 0.5]] * 3
    assert reward == 3


def test_keyword_arguments_reach_the_simulator_whatever_they_are_called(recorder: str) -> None:
    own = {"frame_skip": 4, "repeat": 7, "pixels": [1, 2], "num_envs": 3, "num_workers": 5, "env_id": "x", "kwargs": {}}
    config = load_config(["env=gym", f"env.id={recorder}", "env.frame_skip=2"]).env
    env = config.model_copy(update={"kwargs": own}).build_base(1)
    assert env._simulators.envs[0].unwrapped.arguments == own
    stepped = env.step(env.reset().set("action", torch.zeros(1, 2)))
    assert stepped["next", "reward"].item() == 2 * 7


def test_a_nested_target_is_built_for_each_simulator(recorder: str) -> None:
    node = "{_target_: gymnasium.spaces.Discrete, n: 3, start: 2}"
    config = load_config(["env=gym", f"env.id={recorder}", f"+env.kwargs.inner.space={node}"]).env
    first, second = (env.unwrapped.arguments["inner"]["space"] for env in config.build_base(2)._simulators.envs)
    assert first == second == spaces.Discrete(3, start=2)
    assert first is not second
    with pytest.raises(ConfigError, match=r"env\.kwargs\.\S*_target_(.|\n)*refused its arguments"):
        load_config(
            ["env=gym", f"env.id={recorder}", "+env.kwargs.a={_target_: gymnasium.spaces.Discrete, n: -1}"]
        ).env.build_base(1)
