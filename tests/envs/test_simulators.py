"""What simulators are handed, and what of theirs is checked: actions, keyword arguments, raw values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import run_command
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.gymnasium.making import RepeatAction
from rlexp.training.checks import check_env


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


OBSERVATION = np.zeros(3, np.float32)
FIVE: tuple[Any, ...] = (OBSERVATION, 1.0, False, False, {})
# What step() returns, and what is reported of it.
STEPS: dict[str, tuple[Any, str]] = {
    "four": (
        (OBSERVATION, 1.0, False, {}),
        r"step\(\) must return \(observation, reward, terminated, truncated, info\)",
    ),
    "list": (list(FIVE), r"step\(\) must return(.|\n)*\(list\)"),
    "wide": ((np.zeros(4, np.float32), *FIVE[1:]), r"shape \(4,\), and its space has \(3,\)"),
    "broadcast": ((np.zeros(1, np.float32), *FIVE[1:]), r"shape \(1,\), and its space has \(3,\)"),
    "scalar": ((7.0, *FIVE[1:]), r"shape \(\), and its space has \(3,\)"),
    "complex": ((np.zeros(3, np.complex64), *FIVE[1:]), "type complex64, and its space has float32"),
    "text": (("abc", *FIVE[1:]), "observation of"),
    "no reward": ((OBSERVATION, None, *FIVE[2:]), r"reward None \(NoneType\), which must be one number"),
    "reward array": ((OBSERVATION, np.ones(1), *FIVE[2:]), r"reward an array of shape \(1,\)"),
    "reward text": ((OBSERVATION, "1", *FIVE[2:]), "reward '1'"),
    "done number": ((OBSERVATION, 1.0, 3, False, {}), r"terminated = 3 \(int\), which must be True or False"),
    "done nan": ((OBSERVATION, 1.0, False, float("nan"), {}), r"truncated = nan \(float\), which must be"),
}
RESETS: dict[str, tuple[Any, str]] = {
    "no info": (OBSERVATION, r"reset\(\) must return \(observation, info\)"),
    "reset wide": ((np.zeros(4, np.float32), {}), r"reset\(\) gives observation of shape \(4,\)"),
    "reset text": (({}, {}), "observation of"),
}


class Broken(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Right but for one call of `step`, or of `reset`."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, kind: str, at: int = 1) -> None:
        self.kind, self.at, self.steps = kind, at, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return RESETS[self.kind][0] if self.kind in RESETS else (OBSERVATION, {})

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at:
            if self.kind == "exit":
                raise SystemExit(0)
            if self.kind == "raise":
                raise ValueError("boom")
            if self.kind in STEPS:
                return STEPS[self.kind][0]
        return FIVE


@pytest.fixture
def broken() -> Iterator[list[str]]:
    gymnasium.register("Broken-v0", Broken, max_episode_steps=20)
    yield ["env=gym", "env.id=Broken-v0", "env.num_envs=2", "env.init_random_steps=40", "logger=none", "threads=1"]
    del gymnasium.registry["Broken-v0"]


def built(overrides: list[str], kind: str, **kwargs: Any) -> Any:
    config = load_config(overrides)
    env = config.env.model_copy(update={"kwargs": {"kind": kind, **kwargs}})
    return config.model_copy(update={"env": env})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", [*STEPS, *RESETS])
def test_what_breaks_gymnasiums_interface_is_named_before_training(kind: str, broken: list[str], tmp_path: Any) -> None:
    reported = {**STEPS, **RESETS}[kind][1]
    with pytest.raises(ConfigError, match=rf"env=Broken-v0(.|\n)*{reported}"):
        Trainer(built(broken, kind), tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "kind", ["four", "wide", "broadcast", "scalar", "no reward", "done number", "done nan", "exit", "raise"]
)
def test_what_breaks_it_later_ends_the_run_with_the_simulator_named(kind: str, broken: list[str]) -> None:
    env = built(broken, kind, at=10).env.build_base(2)
    with pytest.raises(SimulatorError, match=r"simulator 0 of Broken-v0 (failed|called sys\.exit)"):
        env.rollout(12)


def test_the_checks_of_the_first_steps_take_themselves_out(broken: list[str]) -> None:
    env = built(broken, "").env.build_base(1)
    (simulator,) = env._simulators.envs
    env.rollout(10)
    layers = []
    while isinstance(simulator, gymnasium.Wrapper):
        layers.append(type(simulator).__name__)
        simulator = simulator.env
    assert layers == ["TimeLimit", "OrderEnforcing", "PassiveEnvChecker"]


class Declared(Broken):
    """Observes what it is made with, from the seventh step on, under any space."""

    def __init__(self, space: spaces.Space[Any], first: Any, later: Any) -> None:
        super().__init__("")
        self.observation_space, self.first, self.later = space, first, later

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.first, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return (self.later if self.steps > 6 else self.first, *FIVE[1:])


IMAGE = spaces.Box(0, 255, (1, 4, 4), np.uint8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("space", "first", "later", "reported"),
    [
        (IMAGE, np.zeros((1, 4, 4), np.float32), None, "type float32, and its space has uint8"),
        (IMAGE, np.full((1, 4, 4), 300), None, r"observation\[0, 0, 0\] = 300, and its space has 0 to 255"),
        (spaces.Discrete(4), 4, None, r"observation = 4 \(int\), which is not in its space Discrete\(4\)"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))), {"a": 1}, None, "with the entries"),
        (spaces.Dict(b=spaces.Box(0, 1, (2,))), {"b": np.zeros(3)}, None, r"observation\['b'\] of shape \(3,\)"),
        (spaces.Box(-1, 1, (3,), np.float32), OBSERVATION, OBSERVATION + 2, r"observation\[0\] = 2\.0, and"),
        (spaces.Box(-1, 1, (3,), np.float32), OBSERVATION, OBSERVATION * np.nan, r"observation\[0\] = nan, and"),
    ],
)
def test_observations_are_those_of_the_declared_space(
    space: spaces.Space[Any], first: Any, later: Any, reported: str, broken: list[str]
) -> None:
    gymnasium.register("Declared-v0", Declared, max_episode_steps=20)
    later = first if later is None else later
    try:
        overrides = [*broken, "env.id=Declared-v0", "env/transforms=none"]
        env = load_config(overrides).env.model_copy(update={"kwargs": {"space": space, "first": first, "later": later}})
        with pytest.raises(ConfigError, match=reported):
            check_env(env)
        if later is first:
            with pytest.raises(ConfigError, match=reported):
                env.build_base(1).rollout(1)
    finally:
        del gymnasium.registry["Declared-v0"]


BLACK = np.zeros((1, 4, 4), np.uint8)
PAIR = spaces.MultiDiscrete([3, 4])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("entry", [False, True])
@pytest.mark.parametrize(
    ("space", "first", "later", "reported"),
    [
        (IMAGE, BLACK, np.full((1, 4, 4), 300), r"\[0, 0, 0\] = 300, and its space has 0 to 255"),
        (IMAGE, BLACK, np.full((1, 4, 4), 0.7), "of type float64, and its space has uint8"),
        (spaces.Discrete(4), 0, -1, r"= -1 \(int\), which is not in its space Discrete\(4\)"),
        (spaces.Discrete(4), 0, 4, r"= 4 \(int\), which is not in its space Discrete\(4\)"),
        (PAIR, [2, 0], [3, 0], r"= \[3, 0\] \(list\), which is not in its space MultiDiscrete\(\[3 4\]\)"),
        (spaces.Tuple([PAIR, PAIR]), ([2, 0], [2, 0]), ([2, 0], [3, 0]), r"\[1\] = \[3, 0\] \(list\), which"),
    ],
)
def test_what_would_be_misread_later_ends_the_run_with_the_simulator_named(
    space: spaces.Space[Any], first: Any, later: Any, reported: str, entry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if entry:
        space = spaces.Dict(seen=space, position=spaces.Box(-1, 1, (3,), np.float32))
        first, later = ({"seen": seen, "position": OBSERVATION} for seen in (first, later))
    spec = EnvSpec("Declared-v0", Declared, max_episode_steps=20)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    env = BatchedGymEnv(spec.id, num_envs=1, kwargs={"space": space, "first": first, "later": later})
    stepped, reported = env.rollout(6)[:, -1], rf"simulator 0 of Declared-v0 failed(.|\n)* observation.*{reported}"
    with pytest.raises(SimulatorError, match=reported):
        env.step(stepped)
    env._simulators.envs[0].unwrapped.first = later
    with pytest.raises(SimulatorError, match=reported):
        env.reset()


TROUBLE = """
import os
import signal
import subprocess
import time
from contextlib import suppress
import gymnasium
import numpy as np
from rlexp.training import watchdog

watchdog._GRACE = 1  # seconds
os.environ.setdefault("TRAINING", str(os.getpid()))  # workers inherit it

class Trouble(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, kind):
        self.kind, self.steps = kind, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.kind == "exit" and self.steps == 25:
            raise SystemExit(0)
        here = os.environ["TRAINING"] == str(os.getpid())
        if self.steps == 25 and (self.kind == "stopped" or self.kind == "stopped by a worker" and not here):
            seconds = 3 if here else 6  # more than collector.timeout
            wake = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.environ['TRAINING']}"])
            os.kill(int(os.environ["TRAINING"]), signal.SIGSTOP)
            wake.wait()
            time.sleep(1 if here else 0)  # until the watchdog has looked
        if self.kind == "hang" and self.steps == 25:
            time.sleep(600)
        while self.kind == "stubborn" and self.steps == 25:
            with suppress(Exception):
                time.sleep(600)
        return np.zeros(3, np.float32), 1.0, False, False, {}

    def close(self):
        if self.kind == "close":
            raise OSError("the window is gone")

gymnasium.register("Trouble-v0", Trouble, max_episode_steps=20)
"""


@pytest.mark.parametrize(
    ("kind", "code", "status", "reported"),
    [
        ("hang", 1, "failed", "simulator 0 of trouble:Trouble-v0 has not returned for 2 s (collector.timeout)"),
        ("stubborn", 1, "failed", "simulator 0 of trouble:Trouble-v0 has not returned for 2 s (collector.timeout)"),
        ("exit", 1, "failed", "simulator 0 of trouble:Trouble-v0 called sys.exit"),
        ("stopped", 0, "completed", "final evaluation"),
        ("stopped by a worker", 0, "completed", "final evaluation"),
        ("close", 0, "completed", "simulator 0 of trouble:Trouble-v0 cannot be closed: OSError: the window is gone"),
    ],
)
def test_exit_code_status_and_message_agree(kind: str, code: int, status: str, reported: str, tmp_path: Path) -> None:
    (tmp_path / "trouble.py").write_text(TROUBLE)
    in_worker = kind == "stopped by a worker"  # which may be slow to answer where many processes run
    done = run_command(
        "rlexp-train",
        *("env=gym", "env.id=trouble:Trouble-v0", f"env.kwargs.kind={kind}", "env.num_envs=2", "total_frames=40"),
        f"env.num_workers={1 + in_worker}",
        *("env.init_random_steps=20", "logger=none", "threads=1", "device=cpu"),
        f"collector.timeout={5 if in_worker else 2}",
        *("collector.frames_per_batch=40", "minibatch_size=20", "num_epochs=1", "evaluation.episodes=1"),
        "hydra.run.dir=run",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == code, done.stderr
    assert reported in done.stderr + done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == status
