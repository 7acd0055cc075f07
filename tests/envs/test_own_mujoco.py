"""MuJoCo tasks of the user's own, and models that vary from episode to episode."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from agents import composed
from mujoco.batch import Batch

from rlexp import Trainer
from rlexp.config import ConfigError
from rlexp.envs.errors import SimulatorError
from rlexp.envs.mujoco.batch import BatchedMujoco
from rlexp.envs.mujoco.task import Array, MujocoTask, Rows
from rlexp.envs.mujoco.tasks import TASKS
from rlexp.envs.saving import StateUnavailableError
from rlexp.runs import checkpoint

HOPPER = ["env=mujoco", "env.task._target_=rlexp.envs.mujoco.tasks.Hopper", "env.name=hopper"]
RANGES = {"body_mass": (0.5, 2.0), "geom_friction": (0.6, 1.4), "actuator_gear": (0.9, 1.1)}
BOTH = RANGES | {"body_inertia": (0.8, 1.2)}
LIMIT = 12


def task(name: str) -> MujocoTask:
    make: Any = TASKS[name]
    made: MujocoTask = make()
    return made


def randomized(name: str, ranges: Any = RANGES, threads: int = 1) -> BatchedMujoco:
    env = BatchedMujoco(
        task(name), name, num_envs=3, max_episode_steps=LIMIT, num_threads=threads, randomization=ranges
    )
    env.set_seeds([5, 6, 7])
    env.reset_arrays(range(3))
    return env


def factors_of(seed: int, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    rng, _ = gymnasium.utils.seeding.np_random(seed)
    low, high = np.array([ranges[name] for name in sorted(ranges)]).T
    return dict(zip(sorted(ranges), rng.uniform(low, high), strict=True))


def noise_after(seed: int, ranges: dict[str, tuple[float, float]]) -> np.random.Generator:
    rng: np.random.Generator = gymnasium.utils.seeding.np_random(seed)[0]
    rng.uniform(size=len(ranges))
    return rng


@pytest.mark.parametrize(
    ("name", "threads", "ranges"),
    [("Hopper-v5", 1, RANGES), ("Hopper-v5", 2, BOTH), ("Ant-v5", 2, RANGES), ("Humanoid-v5", 1, RANGES)],
)
def test_each_simulation_is_one_of_a_model_changed_by_hand(
    name: str, threads: int, ranges: dict[str, tuple[float, float]]
) -> None:
    """Against Gymnasium's environment with the changed model, contact forces and constants included."""
    with closing(randomized(name, ranges, threads)) as env:
        actions = np.random.default_rng(0).uniform(-0.4, 0.4, (LIMIT - 1, *env.arrays.action.shape)).astype(np.float32)
        found = [env.arrays.observation.copy()]
        for action in actions:
            env.set_actions(action)
            env.step_arrays()
            assert not env.arrays.terminated.any()
            found.append(env.arrays.observation.copy())
    for i, seed in enumerate((5, 6, 7)):
        simulator: Any = gymnasium.make(name)
        model = simulator.unwrapped.model
        for field, factor in factors_of(seed, ranges).items():
            getattr(model, field)[:] *= factor
            if field == "body_mass":
                model.body_inertia[:] *= factor
        mujoco.mj_setConst(model, mujoco.MjData(model))
        simulator.reset(seed=seed)
        simulator.unwrapped._np_random = noise_after(seed, ranges)
        expected = [simulator.reset()[0], *(simulator.step(action[i].copy())[0] for action in actions)]
        for t, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            assert np.array_equal(mine[i], theirs), (i, t)


def test_factors_are_drawn_anew_at_each_reset_of_that_simulation_alone() -> None:
    with closing(randomized("Hopper-v5")) as env:
        assert env._random is not None
        before = env._random.factors.copy()
        assert ((before >= 0.5) & (before <= 2)).all()
        assert len(np.unique(before)) == before.size
        env.reset_arrays([1])
        after = env._random.factors
        assert (after[1] != before[1]).all()
        assert np.array_equal(after[[0, 2]], before[[0, 2]])
        default = env.task.model.geom_friction
        np.testing.assert_allclose(env._batch.expanded("geom_friction"), after[:, 2, None, None] * default)
        assert np.array_equal(env.task.model.body_mass, task("Hopper-v5").model.body_mass)


@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5"])
def test_a_state_holds_the_models(name: str) -> None:
    with closing(randomized(name)) as one, closing(randomized(name)) as other:
        rng = np.random.default_rng(1)
        for t in range(30):
            if t == 7:
                state = one.simulator_state()
                other.reset_arrays(range(3))
                other.load_simulator_state(state)
            action = rng.uniform(-1, 1, one.arrays.action.shape).astype(np.float32)
            for env in (one, other) if t >= 7 else (one,):
                env.set_actions(action)
                env.step_arrays()
                env.reset_arrays(np.flatnonzero(env.arrays.terminated | env.arrays.truncated).tolist())
            if t >= 7:
                assert np.array_equal(one.arrays.observation, other.arrays.observation)


PLANE = """
<mujoco>
  <worldbody>
    <body>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom size="0.1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


class Ball(MujocoTask):
    """A ball in the plane, right as it is; a test replaces one method."""

    def __init__(self, folder: Path) -> None:
        (folder / "plane.xml").write_text(PLANE)
        super().__init__(str(folder / "plane.xml"), frame_skip=5)

    @property
    def observation_size(self) -> int:
        return 2

    def begin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        return rng.uniform(-1, 1, 2), np.zeros(2)

    def observe(self, rows: Rows) -> Array:
        return np.asarray(self.qpos[rows])

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        return np.asarray(-np.linalg.norm(self.qpos, axis=-1))


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize(
    ("method", "own", "message"),
    [
        ("reward", lambda ball, *_: -np.linalg.norm(ball.qpos), r"Ball\.reward gives shape \(\), not \(3,\): one row"),
        ("reward", lambda ball, *_: ball.qpos[:, :1], r"Ball\.reward gives shape \(3, 1\), not \(3,\)"),
        ("reward", lambda ball, *_: 1 / 0, r"Ball\.reward failed: ZeroDivisionError: division by zero"),
        ("terminated", lambda ball: np.abs(ball.qpos).max() > 2, r"Ball\.terminated gives shape \(\), not \(3,\)"),
        ("terminated", lambda ball: np.abs(ball.qpos).max(-1), r"Ball\.terminated gives float64, and bool is needed"),
        ("observe", lambda ball, rows: ball.qpos[0], r"Ball\.observe gives shape \(2,\), not \(3, 2\)"),
        ("position", lambda ball, compared: compared.x, r"Ball\.position failed: AttributeError"),
        (
            "position",
            lambda ball, compared: compared.mean(),
            r"Ball\.position gives shape \(\), and one row",
        ),
        ("begin", lambda ball, rng: rng.uniforms(2), r"Ball\.begin failed: AttributeError"),
        (
            "begin",
            lambda ball, rng: rng.uniform(-1, 1, 2),
            r"Ball\.begin gives shapes \(2,\), and positions",
        ),
        (
            "begin",
            lambda ball, rng: (rng.uniform(-1, 1), np.zeros(2)),
            r"Ball\.begin gives shapes \[\(\), \(2,\)\]",
        ),
        ("begin", lambda ball, rng: (np.zeros(3), np.zeros(2)), r"Ball\.begin gives shapes \[\(3,\), \(2,\)\], and"),
        ("begin", lambda ball, rng: (np.full(2, np.nan), np.zeros(2)), r"Ball\.begin gives NaN"),
    ],
)
def test_what_would_broadcast_or_fails_in_a_task_is_named(
    method: str, own: Any, message: str, repeat: int, tmp_path: Path
) -> None:
    broken = type("Ball", (Ball,), {method: own})(tmp_path)
    with pytest.raises(SimulatorError, match=message):
        BatchedMujoco(broken, "ball", num_envs=3, max_episode_steps=5, repeat=repeat).rollout(1)


def test_a_field_that_mujoco_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"Ball\.fields: (.|\n)*xposs"):
        BatchedMujoco(type("Ball", (Ball,), {"fields": ("xposs",)})(tmp_path), "ball", num_envs=3, max_episode_steps=5)


def test_a_reward_that_writes_into_the_action_changes_no_later_frame(tmp_path: Path) -> None:
    def clears(ball: Ball, action: Array, before: Array, after: Array) -> Array:
        action *= 0
        return np.zeros(len(action))

    ended = []
    for own in ({}, {"reward": clears}):
        balls = BatchedMujoco(type("Ball", (Ball,), own)(tmp_path), "ball", num_envs=3, max_episode_steps=5, repeat=2)
        balls.set_seeds([0, 1, 2])
        balls.reset_arrays(range(3))
        balls.arrays.action[:] = 1
        balls.step_arrays()
        ended.append(balls.task.qvel.tolist())
    assert ended[0] == ended[1]


def unstable(folder: Path, **options: Any) -> BatchedMujoco:
    balls = BatchedMujoco(Ball(folder), "ball", num_envs=3, max_episode_steps=5, **options)
    balls.reset_arrays(range(3))
    balls.task.qvel[1] = 1e11
    return balls


def test_a_simulation_that_is_no_longer_stable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"simulation 1 of ball is unstable(.|\n)*smaller timestep"):
        unstable(tmp_path).step_arrays()


@pytest.mark.parametrize("threads", [1, 2])
def test_gymnasiums_goes_on_from_the_default_pose_and_mujocos_warning_leaves_no_file(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)
    balls = unstable(tmp_path, num_threads=threads, resets_unstable=True)
    balls.step_arrays()
    assert balls.arrays.observation[1].tolist() == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["plane.xml"]


class Smooth(Ball):
    """Pays for changes of the action, whose previous one an attribute holds."""

    def bind(self, batch: Batch) -> None:
        super().bind(batch)
        self.last = np.zeros((batch.nsim, 1))

    def restart(self, rows: Rows) -> None:
        self.last[rows] = 0

    def reward(self, action: Array, before: Array, after: Array) -> Array:
        changed = np.abs(action - self.last)[:, 0]
        self.last[:] = action
        return np.asarray(-changed)


def test_what_a_task_remembers_is_saved_and_reset_by_rows(tmp_path: Path) -> None:
    one, other = (BatchedMujoco(Smooth(tmp_path), "ball", num_envs=2, max_episode_steps=9) for _ in range(2))
    one.reset_arrays([0, 1])
    for action, done, rewards in ((1.0, [1], [-1, -1]), (0.25, [], [-0.75, -0.25]), (0.5, [], [-0.25, -0.25])):
        one.set_actions(np.full((2, 1), action, np.float32))
        one.step_arrays()
        assert one.arrays.reward.tolist() == rewards
        state = one.simulator_state()
        one.reset_arrays(done)
    one.set_actions(np.zeros((2, 1), np.float32))
    one.step_arrays()
    other.load_simulator_state(state)
    other.step_arrays()
    assert other.arrays.reward.tolist() == one.arrays.reward.tolist() == [-0.5, -0.5]
    vars(one.task)["view"] = vars(one.task)["last"][:, 0]
    with pytest.raises(StateUnavailableError, match=r"Smooth\.view and Smooth\.last are views of the same numbers"):
        one.simulator_state()
    del vars(one.task)["view"]
    vars(one.task)["noise"] = np.random.default_rng()
    with pytest.raises(StateUnavailableError, match=r"Smooth\.noise is a Generator, which cannot be saved"):
        one.simulator_state()


SMALL = [
    *("env.num_envs=2", "env.max_episode_steps=20", "collector.frames_per_batch=64", "minibatch_size=32"),
    *("num_epochs=1", "evaluation.episodes=2", "evaluation.interval=64", "logger=none", "policy.num_cells=[8]"),
    *("env.init_random_steps=8", "checkpoint.interval=64"),
]


def test_a_run_with_a_model_that_varies_resumes_to_the_bit(tmp_path: Any) -> None:
    overrides = [*HOPPER, *SMALL, "env.randomization={body_mass: [0.5, 2.0], geom_friction: [0.5, 1.5]}"]
    Trainer(composed(*overrides, "total_frames=192"), tmp_path / "whole").fit()
    Trainer(composed(*overrides, "total_frames=64"), tmp_path / "cut").fit()
    Trainer.resume(tmp_path / "cut", ["total_frames=192"]).fit()
    whole, cut = (checkpoint.load(tmp_path / name).state for name in ("whole", "cut"))
    assert all((whole.actor[key] == cut.actor[key]).all() for key in whole.actor)
    assert not cut.inexact
    assert not cut.unverified


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.randomization={body_mas: [0.5, 2]}", r"randomization\.body_mas\n.*Did you mean.*body_mass"),
        ("env.randomization={body_parentid: [0.5, 2]}", r"randomization\.body_parentid"),
        ("env.randomization={body_mass: [2, 0.5]}", "is empty"),
        ("env.randomization={body_mass: 2}", "body_mass"),
        ("env.randomization={body_mass: [0, 2]}", "greater than 0"),
        ("env.num_workers=99", "more than there are simulators"),
    ],
)
def test_what_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*HOPPER, override)
