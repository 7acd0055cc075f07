"""Minibatches: each step once in a pass, sequences whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from rlexp.distributed import POSITION, Group
from rlexp.envs.entries import RESERVED
from rlexp.training.learners.batches import explained_variance, minibatches, stacked


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.data())
def test_a_pass_has_each_step_at_most_once_and_sequences_whole(
    num_envs: int, sequences: int, length: int, data: st.DataObject
) -> None:
    total = num_envs * sequences
    size = data.draw(st.integers(1, total)) * length
    number = torch.arange(total * length).view(num_envs, -1)
    batch = TensorDict({"number": number, "double": 2 * number[..., None]}, number.shape)
    found = list(minibatches(batch, ["number", "double"], size, length))
    assert [len(minibatch["number"]) for minibatch in found] == [size] * (total * length // size)
    seen = torch.cat([minibatch["number"] for minibatch in found])
    assert len(seen.unique()) == len(seen)
    assert (torch.cat([minibatch["double"] for minibatch in found])[:, 0] == 2 * seen).all()
    starts = seen.view(-1, length)
    assert (starts[:, 0] % length == 0).all()
    assert (starts == starts[:, :1] + torch.arange(length)).all()


@pytest.mark.parametrize("size", [32, 64])
def test_where_minibatches_fill_the_batch_a_pass_has_each_step_exactly_once_in_a_new_order(size: int) -> None:
    batch = TensorDict({"number": torch.arange(128).view(4, 32)}, [4, 32])
    passes = [torch.cat([m["number"] for m in minibatches(batch, ["number"], size)]) for _ in range(3)]
    for order in passes:
        assert sorted(order.tolist()) == list(range(128))
    assert len({tuple(order.tolist()) for order in passes}) == 3


def test_steps_that_do_not_fill_a_minibatch_are_other_ones_in_each_pass() -> None:
    batch = TensorDict({"number": torch.arange(50).view(1, 50)}, [1, 50])
    left_out = [
        frozenset(range(50)) - set(torch.cat([m["number"] for m in minibatches(batch, ["number"], 20)]).tolist())
        for _ in range(4)
    ]
    assert all(len(steps) == 10 for steps in left_out)
    assert len(set(left_out)) == 4


class Second(Group):
    """The second of two learners, alone with its steps."""

    rank, size = 1, 2


def test_an_entry_may_have_any_name_that_environments_may_give() -> None:
    position = torch.rand(2, 8)
    batch = TensorDict({"position": position, "number": torch.arange(16).view(2, 8)}, [2, 8])
    for minibatch in minibatches(batch, ["position", "number"], 8, 1, Second()):
        assert torch.equal(minibatch["position"], position.flatten()[minibatch["number"]])
    assert POSITION in RESERVED


def test_records_are_stacked_by_name() -> None:
    found = stacked([{"a": torch.tensor(1.0), "b": torch.ones(3)}, {"a": torch.tensor(2.0), "b": torch.zeros(3)}])
    assert found["a"].tolist() == [1, 2]
    assert found["b"].shape == (2, 3)


def test_explained_variance() -> None:
    target = torch.randn(1000)
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.zeros(1000), target) == pytest.approx(0)
    assert explained_variance(target + 3, target) == pytest.approx(1)
    assert explained_variance(-target, target) == pytest.approx(-3)
    assert not math.isnan(explained_variance(target, torch.ones(1000)))
