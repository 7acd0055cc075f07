"""The batched environment against plain Gymnasium, transition by transition."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import warm
from collected import simulate
from commands import alive
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from torchrl.envs.utils import check_env_specs
from warm import processes

from rlexp import load_config
from rlexp.config import ConfigError, conf_dir
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.gymnasium.simulators import SimulatorError
from rlexp.envs.normalization import init_normalization
from rlexp.envs.torchrl import entries

SEEDS = [11, 22, 33]


@pytest.mark.parametrize("env_id", ["InvertedDoublePendulum-v5", "Hopper-v5", "Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize(("frame_skip", "num_workers"), [(1, 1), (3, 1), (1, 2)])
def test_transitions_equal_plain_gymnasium_to_the_bit(env_id: str, frame_skip: int, num_workers: int) -> None:
    limit = {"max_episode_steps": 40}
    batched = BatchedGymEnv(env_id, num_envs=3, frame_skip=frame_skip, num_workers=num_workers, kwargs=limit)
    plain = [gymnasium.make(env_id, **limit) for _ in SEEDS]
    batched.set_seeds(SEEDS)
    tensordict = batched.reset()
    observations = [env.reset(seed=seed)[0] for env, seed in zip(plain, SEEDS, strict=True)]
    assert np.array_equal(tensordict["observation"].numpy(), observations)
    torch.manual_seed(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(60):
        action = batched.action_spec.rand()
        stepped, tensordict = batched.step_and_maybe_reset(tensordict.set("action", action))
        for i, env in enumerate(plain):
            total, terminated, truncated = 0.0, False, False
            for _ in range(frame_skip):
                observation, reward, terminated, truncated, _ = env.step(action[i].numpy())
                total += float(reward)
                if terminated or truncated:
                    break
            after = stepped["next"][i]
            assert np.array_equal(after["observation"].numpy(), observation)
            assert after["reward"].item() == total
            assert (after["terminated"].item(), after["truncated"].item()) == (terminated, truncated)
            if terminated or truncated:
                ends["terminated"] += terminated
                ends["truncated"] += truncated
                observation, _ = env.reset()
            assert np.array_equal(tensordict["observation"][i].numpy(), observation)
    batched.close()
    assert sum(ends.values()) > 0
    if env_id == "Pendulum-v1":
        assert ends["terminated"] == 0


# Of those that name no task, one of theirs; of each other option, its own.
TASKS = {
    "gym": ["env.id=Pendulum-v1"],
    "dm_control": ["env.domain=cheetah", "env.task=run"],
    "mujoco": ["env.task._target_=rlexp.envs.mujoco.tasks.Ant", "env.randomization={body_mass: [0.5, 2]}"],
    "torchrl": ["env.make._target_=torchrl.envs.GymEnv", "env.make.env_name=Pendulum-v1", "env.num_envs=2"],
}
ENTRIES = ("dm_control", "priced_pendulum", "seen_target")  # observed, and none of them is called observation
OPTIONS = sorted(path.stem for path in conf_dir().glob("env/*.yaml"))
TRANSFORMS = ["none", "frozen", "running"]
# Transforms take turns over options that only name another of Gymnasium's tasks.
EVERY = {*TASKS, "cartpole", "seen_target", "torch_cartpole"}
TURNS = [(a, b) for i, a in enumerate(OPTIONS) for j, b in enumerate(TRANSFORMS) if a in EVERY or j == i % 3]


@pytest.mark.parametrize(("option", "transforms"), TURNS)
def test_specs_hold(option: str, transforms: str) -> None:
    overrides = [f"env={option}", f"env/transforms={transforms}", *TASKS.get(option, [])]
    if (option == "car_racing" and transforms != "none") or (transforms == "frozen" and option in ENTRIES):
        with pytest.raises(ConfigError, match=r"normalises pixels by statistics|normalises observation, and the"):
            load_config(overrides).env.build(2)
        return
    env = load_config(overrides).env.build(2)
    env.set_seed(0)
    init_normalization(env, 20)
    check_env_specs(env)
    steps = env.rollout(5)
    assert {steps[key].dtype for key in entries(env)} <= {torch.float32, torch.uint8}


class Odd(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """An observation of many kinds of numbers, and choices that are counted from 5."""

    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, **parts: gymnasium.spaces.Space[Any]) -> None:
        flags = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiBinary(2)])
        position = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
        self.observation_space = gymnasium.spaces.Tuple([flags, position, *parts.values()])

    def _observation(self) -> tuple[Any, ...]:
        return (self.last % 3, np.array([1, 0], np.int8)), np.array([0.25, 0.5])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.last = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.last = int(action)
        return self._observation(), float(action), False, False, {}


@pytest.fixture
def odd() -> Iterator[str]:
    gymnasium.register("Odd-v0", Odd, max_episode_steps=20)
    yield "Odd-v0"
    del gymnasium.registry["Odd-v0"]


def test_parts_of_an_observation_become_one_vector_and_choices_count_from_zero(odd: str) -> None:
    env = BatchedGymEnv(odd, num_envs=2)
    check_env_specs(env)
    stepped = env.step(env.reset().set("action", torch.tensor([0, 2])))["next"]
    assert stepped["reward"].flatten().tolist() == [5, 7]
    # Gymnasium's order; a Discrete as one of so many flags
    assert stepped["observation"].tolist() == [[0, 0, 1, 1, 0, 0.25, 0.5], [0, 1, 0, 1, 0, 0.25, 0.5]]
    env.load_simulator_state(env.simulator_state())


def test_flags_alone_become_floats() -> None:
    env = BatchedGymEnv("FrozenLake-v1", num_envs=1)
    assert env.reset()["observation"].dtype is torch.float32
    assert env.reset()["observation"].sum() == 1


@pytest.mark.parametrize(
    ("part", "reported"),
    [
        (gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), r"'2' is an image of shape \(8, 8, 3\) within a Tuple"),
        (gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)), "of no fixed size"),
    ],
)
def test_observations_that_are_no_vector_are_refused(
    part: gymnasium.spaces.Space[Any], reported: str, odd: str
) -> None:
    with pytest.raises(ConfigError, match=reported):
        BatchedGymEnv(odd, num_envs=1, kwargs={"part": part})


@pytest.mark.parametrize(
    ("wrapper", "remedy"),
    [(NormalizeObservation, "env/transforms=running"), (NormalizeReward, r"loss\.normalize_reward=true")],
)
def test_wrappers_that_learn_statistics_are_refused(
    wrapper: type[Any], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normalized(*, learns: bool) -> gymnasium.Env[Any, Any]:
        env = wrapper(PendulumEnv())
        env.update_running_mean = learns
        return gymnasium.wrappers.ClipReward(env, -1, 1)

    spec = EnvSpec("Normalized-v0", normalized, max_episode_steps=20)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(ConfigError, match=rf"Normalized-v0(.|\n)*has {wrapper.__name__} among(.|\n)*{remedy}"):
        BatchedGymEnv(spec.id, num_envs=1, kwargs={"learns": True})
    BatchedGymEnv(spec.id, num_envs=1, kwargs={"learns": False}).rollout(2)


def test_reset_of_one_leaves_the_others() -> None:
    env = BatchedGymEnv("Hopper-v5", num_envs=3)
    env.set_seed(0)
    tensordict = env.reset()
    before = tensordict["observation"].clone()
    after = env.reset(tensordict.set("_reset", torch.tensor([[False], [True], [False]])))["observation"]
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


def test_seeding_gives_independent_simulators_and_repeats() -> None:
    env = BatchedGymEnv("InvertedPendulum-v5", num_envs=4)
    env.set_seed(0)
    first = env.reset()["observation"].clone()
    env.set_seed(0)
    assert torch.equal(env.reset()["observation"], first)
    env.set_seed(1)
    others = env.reset()["observation"]
    assert len(torch.cat([first, others]).unique(dim=0)) == 8


FAULTY = """
import os, signal, time
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Faulty(PendulumEnv):
    def __init__(self, fault, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.steps = fault, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3 and os.getpid() != FIRST:
            {"death": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(600)}.get(
                self.fault, lambda: 1 / 0
            )()
        return super().step(action)

gymnasium.register("Faulty-v0", Faulty, max_episode_steps=20)
"""


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("death", "died with exit code -9"),
        ("exception", "ZeroDivisionError: division by zero"),
        ("hang", "did not answer in 3 s"),
    ],
)
def test_fault_in_a_worker_is_reported_with_its_simulators(
    fault: str, reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty.py").write_text(f"FIRST = {os.getpid()}\n{FAULTY}")
    monkeypatch.syspath_prepend(tmp_path)
    env = BatchedGymEnv("faulty:Faulty-v0", num_envs=4, num_workers=2, kwargs={"fault": fault})
    pids = worker_pids(env)
    tensordict = env.reset()
    env.timeout = 3
    with pytest.raises(SimulatorError, match=f"simulators 2 to 3 of faulty:Faulty-v0(.|\n)*{reported}"):
        env.rollout(5, tensordict=tensordict)
    env.close()
    assert not any(alive(pid) for pid in pids)


DRAWS = """
import random
import gymnasium, numpy as np
from gymnasium.envs.classic_control import PendulumEnv

class Draws(PendulumEnv):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, np.random.random() + random.random(), terminated, truncated, info

gymnasium.register("Draws-v0", Draws, max_episode_steps=20)
"""


def test_what_workers_draw_from_global_generators_goes_by_their_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draws.py").write_text(DRAWS)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4]):
        env = BatchedGymEnv("draws:Draws-v0", num_envs=3, num_workers=3)
        env.set_seeds(seeds)
        found.append(env.rollout(3)["next", "reward"][1:])  # the first one's is this process
        env.close()
    one, same, other = found
    assert torch.equal(one, same)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(one[0], one[1])


def test_close_ends_every_worker() -> None:
    env = BatchedGymEnv("Pendulum-v1", num_envs=3, num_workers=3)
    pids = worker_pids(env)
    env.rollout(2)
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    os.kill(pids[0], signal.SIGINT)  # a terminal's Ctrl-C reaches workers too, and is the main process's to answer
    env.rollout(2)
    env.close()
    assert not any(alive(pid) for pid in pids)


def simulated(folder: Path, env_id: str, *, die: bool = False) -> int | None:
    """The exit code of a process that steps simulators of two processes."""
    process = processes.Process(target=simulate, args=(folder, warm.start(), env_id), kwargs={"die": die})
    process.start()
    process.join(120)
    return process.exitcode


def test_workers_do_not_outlive_a_killed_main_process(tmp_path: Path) -> None:
    assert simulated(tmp_path, "Pendulum-v1", die=True) == -signal.SIGKILL
    (pid,) = map(int, (tmp_path / "pids").read_text().split())
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mujocos_warnings_leave_no_file_behind(tmp_path: Path) -> None:
    assert simulated(tmp_path, "HalfCheetah-v5") == 0  # whose model MuJoCo warns of
    assert [path.name for path in tmp_path.iterdir()] == ["pids"]


def test_more_workers_than_simulators_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.num_workers=3(.|\n)*env\.num_envs is 2"):
        load_config(["env.num_envs=2", "env.num_workers=3"])


def worker_pids(env: BatchedGymEnv) -> list[int]:
    return [worker.pid for worker in env.workers]
