"""Actions outside the environment: in the raw environment's own space, and with the same meaning, in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import choosing  # noqa: F401 - registers Choosing-v0
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.data import Bounded, TensorSpec, Unbounded

from rlexp import Trainer, load_config, load_policy
from rlexp.agent import Agent
from rlexp.agent.export import export_policy
from rlexp.config import ConfigError

pytestmark = pytest.mark.usefixtures("quickly_checked")

SPACES: dict[str, spaces.Space[Any]] = {
    "start": spaces.Discrete(3, start=-1),
    "half-bounded": spaces.Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 0.0], np.float32)),
    "narrow": spaces.Box(-0.01, 0.01, (2,), np.float32),
    "float64": spaces.Box(0.1, 0.7, (2,), np.float64),
    "locked": spaces.Box(np.array([0.5, -1], np.float32), np.array([0.5, 1], np.float32)),
    "huge": spaces.Box(-1e30, 1e30, (2,), np.float32),
}


SMALL = [
    *("env.num_envs=2", "env.init_random_steps=20", "logger=none", "threads=1"),
    *("collector.frames_per_batch=40", "minibatch_size=20", "num_epochs=1", "total_frames=40"),
    *("evaluation.episodes=2", "device=cpu"),
]
CHOOSING = ["env=gym", "env.id=Choosing-v0", "env.num_workers=1", *SMALL]


class Taken(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Keeps what it was given."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)

    def __init__(self, kind: str) -> None:
        self.action_space = SPACES[kind]
        self.seen: list[Any] = []

    def _see(self) -> Any:
        self.seen.append((self.np_random.normal(size=2) * 3).astype(np.float32).clip(-10, 10))
        return self.seen[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken: list[Any] = []
        self.seen.clear()
        return self._see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return self._see(), 1.0, False, False, {}


@pytest.fixture
def taken() -> Iterator[list[str]]:
    gymnasium.register("Taken-v0", Taken, max_episode_steps=10)
    yield ["env=gym", "env.id=Taken-v0", *SMALL]
    del gymnasium.registry["Taken-v0"]


@pytest.mark.parametrize("kind", SPACES)
def test_exported_actions_are_the_ones_that_the_environment_was_given(
    kind: str, taken: list[str], tmp_path: Path
) -> None:
    form: Literal["onnx", "torch"] = "onnx" if kind in ("start", "half-bounded") else "torch"  # which is quicker
    policy = "categorical" if kind == "start" else "normal"
    overrides = [*taken, f"env.kwargs.kind={kind}", f"policy={policy}"]
    Trainer.from_config(load_config(overrides), tmp_path / "run").fit()
    agent = Agent(tmp_path / "run")
    base = agent.env.base_env
    agent.rollout(8)
    graph = READERS[form](export_policy(agent, form, tmp_path / "policy"))
    agent.rollout(8, seed=5)
    loaded = load_policy(tmp_path / "run")
    for simulator in base._simulators.envs:
        inner = simulator.unwrapped
        observations, expected = np.stack(inner.seen[:8]), np.stack(inner.taken)
        for actions in (loaded(observations), graph([observations])):
            assert all(inner.action_space.contains(action) for action in actions)
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
        if kind == "start":
            assert set(np.unique(expected)) <= {-1, 0, 1}


@pytest.mark.parametrize("kind", ["half-bounded", "locked", "huge"])
def test_bounds_that_nothing_spreads_between_are_refused_with_what_fits(
    kind: str, taken: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"tanh_normal is no distribution(.|\n)*policy=normal, gru or lstm"):
        Trainer(load_config([*taken, f"env.kwargs.kind={kind}", "policy=tanh_normal"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("action", "mask", "kind", "transforms"),
    [
        ("multi_start", "entry", "onnx", "running"),
        ("integers", "parts", "torch", "running"),
        ("box_shape", None, "torch", "running"),
        ("discrete_start", None, "torch", "none"),  # the first action is the graph's only buffer
    ],
)
def test_every_form_of_action_is_exported_in_its_own_space_and_by_its_masks(
    action: str, mask: str | None, kind: Literal["onnx", "torch"], transforms: str, tmp_path: Path
) -> None:
    policy = "normal" if action.startswith("box") else "categorical"
    overrides = [
        *CHOOSING,
        f"env/transforms={transforms}",
        f"env.kwargs={{action: {action}, mask: {mask or 'null'}, ends: 0}}",
        f"policy={policy}",
    ]
    source = "info" if mask == "parts" else "auto"
    Trainer.from_config(load_config([*overrides, f"env.action_mask={source}"]), tmp_path / "run").fit()
    agent, loaded = Agent(tmp_path / "run"), load_policy(tmp_path / "run")
    graph = READERS[kind](export_policy(agent, kind, tmp_path / "policy"))
    agent.rollout(8, seed=5)
    for simulator in agent.env.base_env._simulators.envs:
        inner = simulator.unwrapped
        expected = np.stack(inner.taken)
        given = list(zip(*inner.given, strict=True)) if mask is not None else [inner.given]
        inputs = [np.stack(column)[: len(expected)] for column in given]
        if mask is not None:
            inputs[1] = inputs[1].astype(bool)
        for actions in (loaded(*inputs), graph(inputs)):
            assert actions.dtype == inner.action_space.dtype
            assert all(inner.action_space.contains(one) for one in actions)
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    if mask is None:
        with pytest.raises(ValueError, match="was trained without action masks"):
            loaded(*inputs, np.ones((len(expected), 4), bool))


@pytest.mark.parametrize(
    ("space", "expected", "off", "told"),
    [
        (Bounded(-1, 1, (1,)), 0.5, 1e-3, True),
        (Bounded(-1, 1, (1,)), 0.5, 1e-6, False),
        (Bounded(-3e38, 3e38, (1,)), 0.5, 1e-3, True),  # bounds that are none
        (Unbounded((1,)), 1e4, 1e-2, False),  # what float32 rounds at that size
        (Unbounded((1,)), 1e4, 1.0, True),
    ],
)
def test_actions_differ_by_more_than_rounding(space: TensorSpec, expected: float, off: float, told: bool) -> None:
    agent = SimpleNamespace(env=SimpleNamespace(base_env=SimpleNamespace(action_spec_unbatched=space)))
    actions = torch.full((3, 1), expected)
    found = Agent.unlike(cast("Agent", agent), actions.double() + off, actions)
    assert (found is not None) is told


def test_a_mask_is_read_beside_the_entries_that_the_actor_reads(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    overrides = [*CHOOSING, "env.kwargs={observation: dict, mask: entry, ends: 0}", "policy=categorical"]
    Trainer.from_config(load_config([*overrides, "policy.actor_keys=[position]"]), tmp_path / "run").fit()
    agent, loaded = Agent(tmp_path / "run"), load_policy(tmp_path / "run")
    session = onnxruntime.InferenceSession(export_policy(agent, "onnx", tmp_path / "policy.onnx"))
    assert [given.name for given in session.get_inputs()] == ["position", "action_mask"]
    agent.rollout(8, seed=5)
    for simulator in agent.env.base_env._simulators.envs:
        expected = np.stack(simulator.unwrapped.taken)
        seen, masks = zip(*simulator.unwrapped.given[: len(expected)], strict=True)
        position, mask = np.stack([entries["position"] for entries in seen]), np.stack(masks).astype(bool)
        exported = session.run(["action"], {"position": position, "action_mask": mask})[0]
        np.testing.assert_array_equal(loaded({"position": position}, mask), expected)
        assert isinstance(loaded({"position": torch.from_numpy(position)}, mask), torch.Tensor)
        np.testing.assert_array_equal(exported, expected)


def run_onnx(path: Path) -> Callable[[list[Any]], Any]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = ["observation", "action_mask"]
    return lambda inputs: session.run(["action"], dict(zip(names, inputs, strict=False)))[0]


def run_torch(path: Path) -> Callable[[list[Any]], Any]:
    module = torch.export.load(path).module()
    return lambda inputs: module(*map(torch.from_numpy, inputs)).numpy()


READERS = {"onnx": run_onnx, "torch": run_torch}


def test_a_loaded_policy_refuses_masks_that_are_none(tmp_path: Path) -> None:
    recurrent = ["policy=gru", "policy.sequence_length=5", "policy.hidden_size=4"]
    overrides = [*CHOOSING, "env.kwargs={action: multi, mask: entry, ends: 0}", *recurrent]
    Trainer.from_config(load_config(overrides), tmp_path / "run").fit()
    policy = load_policy(tmp_path / "run")
    seen, mask = np.zeros((2, 3), np.float32), np.ones((2, 9), np.int8)
    mask[:, [0, 2]] = 0
    chosen = policy(seen, mask)
    assert (chosen[:, 0] == 1).all()  # 0 is not allowed
    assert (chosen[:, 1] != 0).all()
    policy.reset()
    assert policy(seen[0], mask[0]).shape == (3,)
    policy.reset()
    empty = mask.copy()
    empty[1, :2] = 0
    for given, reason in (
        ((), r"the action_mask is nothing; this policy reads \[2, 9\]"),
        ((mask[:, :5],), r"the action_mask is \[2, 5\]; this policy reads \[2, 9\]"),
        ((empty,), "the action_mask allows no value of an action"),
        ((mask * 2,), "is not made of flags or 0 and 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            policy(seen, *given)
