"""The batched MuJoCo tasks against Gymnasium's own environments, bit for bit."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import ClipReward

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.mujoco.batch import BatchedMujoco
from rlexp.envs.mujoco.tasks import TASKS
from rlexp.envs.saving import StateUnavailableError

NUM_ENVS, LIMIT = 3, 20
# Everything that Gymnasium's constructors take, with values other than the defaults.
KWARGS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {"forward_reward_weight": 0.7, "ctrl_cost_weight": 0.3, "reset_noise_scale": 0.05,
                       "exclude_current_positions_from_observation": False, "frame_skip": 3},
    "Swimmer-v5": {"forward_reward_weight": 0.7, "exclude_current_positions_from_observation": False},
    "Hopper-v5": {"healthy_angle_range": [-0.1, 0.1], "healthy_state_range": [-3.0, 3.0], "healthy_reward": 0.3},
    "Walker2d-v5": {"terminate_when_unhealthy": False, "healthy_z_range": [1.0, 1.3], "ctrl_cost_weight": 0.1},
    "Ant-v5": {"contact_force_range": [-0.5, 0.5], "contact_cost_weight": 0.01, "main_body": 3,
               "include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False},
    "Humanoid-v5": {"contact_cost_range": [0.0, 1e-3], "contact_cost_weight": 1e-3,
                    "include_cinert_in_observation": False, "include_cfrc_ext_in_observation": False},
    "HumanoidStandup-v5": {"impact_cost_weight": 1e-4, "include_cvel_in_observation": False},
    "InvertedPendulum-v5": {"reset_noise_scale": 0.1},
    "InvertedDoublePendulum-v5": {"healthy_reward": 3.0, "reset_noise_scale": 0.2},
    "Reacher-v5": {"reward_dist_weight": 2.0, "reward_control_weight": 0.3},
    "Pusher-v5": {"reward_near_weight": 0.1, "reward_dist_weight": 3.0},
}  # fmt: skip


def batch(name: str, kwargs: dict[str, Any], threads: int = 1, repeat: int = 1) -> BatchedMujoco:
    return BatchedMujoco(
        TASKS[name](**kwargs), name, num_envs=NUM_ENVS, max_episode_steps=LIMIT, repeat=repeat, num_threads=threads
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("changed", [False, True], ids=["default", "kwargs"])
@pytest.mark.parametrize("name", list(TASKS))
def test_transitions_equal_gymnasiums_to_the_bit(name: str, changed: bool, threads: int) -> None:
    kwargs = KWARGS.get(name, {}) if changed else {}
    if changed and not kwargs:
        pytest.skip("takes no arguments")
    check_equal(name, kwargs, threads=threads, repeat=1)


@pytest.mark.parametrize("name", ["Hopper-v5", "InvertedDoublePendulum-v5"])
def test_a_repeated_action_ends_with_its_episode(name: str) -> None:
    check_equal(name, {}, threads=2, repeat=3)


def check_equal(name: str, kwargs: dict[str, Any], *, threads: int, repeat: int) -> None:
    reference = [gymnasium.make(name, max_episode_steps=LIMIT, **kwargs) for _ in range(NUM_ENVS)]
    space, rng = reference[0].action_space, np.random.default_rng(0)
    assert isinstance(space, gymnasium.spaces.Box)
    env = batch(name, kwargs, threads, repeat)
    env.set_seeds(range(NUM_ENVS))
    env.reset_arrays(range(NUM_ENVS))
    assert np.array_equal(env.arrays.observation, [e.reset(seed=i)[0] for i, e in enumerate(reference)])
    episodes = 0
    for t in range(2 * LIMIT):
        actions = rng.uniform(space.low, space.high, (NUM_ENVS, *space.shape)).astype(np.float32)
        env.set_actions(actions)
        env.step_arrays()
        ended = []
        for i, simulator in enumerate(reference):
            total = 0.0
            for _ in range(repeat):
                observation, reward, terminated, truncated, _ = simulator.step(actions[i].copy())
                total += float(reward)
                if terminated or truncated:
                    break
            assert np.array_equal(env.arrays.observation[i], observation), (t, i)
            assert (env.arrays.reward[i], env.arrays.terminated[i]) == (total, terminated), (t, i)
            assert env.arrays.truncated[i] == truncated, (t, i)
            if terminated or truncated:
                ended.append(i)
        env.reset_arrays(ended)
        for i in ended:
            assert np.array_equal(env.arrays.observation[i], reference[i].reset()[0])
        episodes += len(ended)
        if t == LIMIT // 2:  # the rest of the way in a fresh batch, from the saved state
            state = env.simulator_state()
            env.close()
            env = batch(name, kwargs, 3 - threads, repeat)
            env.load_simulator_state(state)
    assert episodes >= NUM_ENVS
    env.close()


@pytest.mark.parametrize("name", list(TASKS))
def test_tasks_take_gymnasiums_arguments_with_its_defaults(name: str) -> None:
    module, _, cls = str(gymnasium.spec(name).entry_point).partition(":")
    theirs = inspect.signature(getattr(__import__(module, fromlist=[cls]), cls)).parameters
    ours = inspect.signature(TASKS[name]).parameters
    assert {key: p.default for key, p in ours.items()} == {
        key: p.default for key, p in theirs.items() if key not in ("default_camera_config", "kwargs")
    }


def test_a_state_of_another_model_is_refused() -> None:
    with closing(batch("Hopper-v5", {})) as hopper, closing(batch("Walker2d-v5", {})) as walker:
        hopper.reset_arrays(range(NUM_ENVS))
        with pytest.raises(StateUnavailableError, match="the MuJoCo model differs"):
            walker.load_simulator_state(hopper.simulator_state())


@pytest.mark.parametrize("first", ["mujoco", "gymnasium"])
@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5", "Humanoid-v5", "InvertedDoublePendulum-v4", "Pusher-v5"])
def test_a_state_of_one_backend_continues_in_the_other_to_the_bit(name: str, first: str) -> None:
    one: Any = batch(name, {})
    other: Any = BatchedGymEnv(name, num_envs=NUM_ENVS, kwargs={"max_episode_steps": LIMIT})
    if first == "gymnasium":
        one, other = other, one
    rng, space = np.random.default_rng(1), gymnasium.make(name).action_space
    assert isinstance(space, gymnasium.spaces.Box)
    with closing(one), closing(other):
        one.set_seeds(range(NUM_ENVS))
        one.reset_arrays(range(NUM_ENVS))
        for t in range(3 * LIMIT):
            if t == LIMIT + 7:
                other.load_simulator_state(one.simulator_state())
            envs = (one, other) if t >= LIMIT + 7 else (one,)
            actions = rng.uniform(space.low, space.high, (NUM_ENVS, *space.shape)).astype(np.float32)
            for env in envs:
                env.set_actions(actions)
                env.step_arrays()
            if len(envs) == 2:
                assert np.array_equal(one.arrays.observation, other.arrays.observation), t
                assert np.array_equal(one.arrays.reward, other.arrays.reward), t
            for env in envs:
                env.reset_arrays(np.flatnonzero(env.arrays.terminated | env.arrays.truncated).tolist())


def test_auto_takes_it_where_it_knows_the_task_and_there_are_several_simulators(
    caplog: pytest.LogCaptureFixture,
) -> None:
    several, one = (load_config(["env=hopper", f"env.num_envs={n}"]).env for n in (2, 1))
    for spec, num_envs, kind in ((several, 2, BatchedMujoco), (one, 1, BatchedGymEnv), (one, 2, BatchedMujoco)):
        with closing(spec.build_base(num_envs)) as env:
            assert type(env) is kind
    with caplog.at_level("INFO"):
        for spec in several, one, load_config(["env=hopper", "env.kwargs.render_mode=rgb_array"]).env:
            spec.with_workers(1024, 2)
    assert [record.getMessage() for record in caplog.records if "backend" in record.getMessage()] == [
        "env.backend=auto: mujoco",
        "env.backend=auto: gymnasium, since it steps a single simulator faster",
        "env.backend=auto: gymnasium, since mujoco.batch does not know env.kwargs.render_mode",
    ]


UNBOUNDED = """
<mujoco>
  <worldbody>
    <body><joint name="slider" type="slide"/><geom size="0.1"/><body><joint/><geom size="0.1"/></body></body>
  </worldbody>
  <actuator><motor joint="slider"/></actuator>
</mujoco>
"""


@pytest.mark.parametrize("backend", ["gymnasium", "mujoco"])
def test_actuators_without_bounds_are_refused(backend: str, tmp_path: Path) -> None:
    (tmp_path / "robot.xml").write_text(UNBOUNDED)
    kwargs = f"env.kwargs.xml_file={tmp_path}/robot.xml"
    env = load_config(["env=gym", "env.id=InvertedPendulum-v5", f"env.backend={backend}", kwargs]).env
    with pytest.raises(ConfigError, match=r"has a single action: give MuJoCo's actuators a ctrlrange"):
        env.build_base(2)


@pytest.mark.parametrize("name", list(TASKS))
def test_an_id_that_is_registered_anew_is_gymnasiums_to_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = load_config(["env=gym", f"env.id={name}", "env.num_envs=2"]).env
    assert config.resolved_backend == "mujoco"
    stock = gymnasium.spec(name)
    for change in (
        {"entry_point": PendulumEnv},
        {"entry_point": "gymnasium.envs.mujoco.ant_v4:AntEnv"},
        {"kwargs": {"reset_noise_scale": 0.0}},
        {"additional_wrappers": (ClipReward.wrapper_spec(min_reward=-1, max_reward=1),)},
    ):
        monkeypatch.setitem(gymnasium.registry, name, dataclasses.replace(stock, **change))
        assert config.resolved_backend == "gymnasium"
        (problem,) = config.model_copy(update={"backend": "mujoco"}).problems()
        assert f"{name} is registered otherwise than Gymnasium does" in problem.message
