"""A checkpoint gives back what was put in, or says that it cannot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlexp import load_policy
from rlexp.agent import Agent
from rlexp.runs import checkpoint, store
from rlexp.runs.checkpoint import TrainState
from rlexp.runs.errors import CheckpointError
from rlexp.runs.manifest import MANIFEST, SESSION, STATE, TENSORS

tensors = st.builds(
    lambda shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**31),
)
numbers = [np.array([[1, 2]], dtype=np.uint32), np.array(2.5), np.float32(1.5), np.float64(0.1), np.bool_(True)]
leaves = st.none() | st.booleans() | st.integers(-(2**127), 2**127) | st.floats(allow_nan=False) | st.text() | tensors
leaves |= st.sampled_from(numbers)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.sampled_from([np.int64(3), (np.uint8(1),)])
trees = st.recursive(
    leaves,
    lambda inner: st.dictionaries(keys, inner) | st.lists(inner) | st.lists(inner).map(tuple),
    max_leaves=8,
)


def state(frames: int = 10, **changes: Any) -> TrainState:
    empty: dict[str, Any] = {
        field.name: {} for field in dataclasses.fields(TrainState) if field.name not in ("frames", "iteration")
    }
    plain: dict[str, Any] = {"unverified": False, "inexact": [], "session": {"seconds": {}, "run_id": "0"}}
    return TrainState(**({"frames": frames, "iteration": 1} | empty | plain | changes))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=50)
@given(trees)
def test_anything_plain_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(folder, state(learner={"tree": tree}), {}, keep_last=2)
    (path,) = (p for p in folder.iterdir() if p.is_dir())
    assert same(checkpoint.load(path).state.learner["tree"], tree)


@pytest.mark.parametrize("name", [TENSORS, STATE, SESSION, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_refused_by_name(name: str, damage: str, tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, state(actor={"w": torch.randn(10)}), {}, keep_last=2)
    file = saved / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match="is damaged" if name != MANIFEST else str(saved)):
        checkpoint.load(saved)


def test_other_format_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, state(), {}, keep_last=2)
    manifest = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(saved)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for frames in range(1, 8):
        saved = checkpoint.save(tmp_path, state(frames), {}, keep_last=2)
        if frames == 3:
            store.point(tmp_path, "best", saved)
    assert [int(p.name) for p in sorted(tmp_path.iterdir()) if p.is_dir()] == [3, 6, 7]
    assert (tmp_path / "latest").read_text() == "000000000007"


def test_run_is_one_state(tiny_run: Path) -> None:
    loaded = checkpoint.load(tiny_run)
    assert loaded.state.frames == 1024
    assert loaded.state.iteration == 4
    assert loaded.state.transforms["transforms.0.moments.count"] == 64 + 1024
    assert loaded.state.learner["reward_norm"]["moments.count"] == 1024
    assert all(entry["step"] == 32 for entry in loaded.state.learner["optimizer"]["state"].values())
    assert Agent(tiny_run).frames == 1024


def test_loaded_policy_repeats_the_evaluation_in_plain_gymnasium(tiny_run: Path) -> None:
    from rlexp.agent.evaluation import evaluate

    agent, policy = Agent(tiny_run), load_policy(tiny_run)
    seeds = [1, 2, 3]
    ours = evaluate(agent.env, agent.networks.actor, seeds)
    for seed, expected, length in zip(seeds, ours.returns, ours.lengths, strict=True):
        env = gymnasium.make("InvertedDoublePendulum-v5")
        observation, _ = env.reset(seed=seed)
        total, steps, done = 0.0, 0, False
        while not done:
            action = policy(torch.from_numpy(observation))
            assert np.all(env.action_space.low <= action.numpy())
            assert np.all(action.numpy() <= env.action_space.high)
            observation, reward, terminated, truncated, _ = env.step(action.numpy())
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
        assert total == pytest.approx(expected, rel=1e-4)
        assert steps == length
    batch = torch.randn(5, 2, 9, dtype=torch.float64)
    assert policy(batch).shape == (5, 2, 1)
    torch.testing.assert_close(policy(batch)[3, 1], policy(batch[3, 1]))
