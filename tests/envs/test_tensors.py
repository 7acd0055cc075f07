"""CartPole in PyTorch against Gymnasium's: random streams, partial resets and saved states of simulators in tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.cartpole import CartPole
from rlexp.envs.errors import SimulatorError
from rlexp.envs.saving import StateUnavailableError
from rlexp.envs.tensors import uniform


def state(env: CartPole) -> torch.Tensor:
    found: torch.Tensor = env.simulator_state()["state"]
    return found


def test_cartpole_is_gymnasiums() -> None:
    """Each row, step by step, from the same state on; rows that end are reset and the others are not."""
    ours, theirs = CartPole(5), [gymnasium.make("CartPole-v1").unwrapped for _ in range(5)]
    ours.set_seed(3)
    tensordict, ends = ours.reset(), 0

    def follow(row: int) -> None:
        theirs[row].reset(seed=0)
        theirs[row].state = state(ours)[row].numpy()

    for row in range(5):
        follow(row)
    actions = torch.randint(2, (300, 5), generator=torch.Generator().manual_seed(1))
    for action in actions:
        stepped, tensordict = ours.step_and_maybe_reset(tensordict.set("action", action))
        after = stepped["next"]
        for row, env in enumerate(theirs):
            observation, reward, terminated, _, _ = env.step(int(action[row]))
            np.testing.assert_allclose(after["observation"][row], observation, rtol=1e-6, atol=1e-7)
            assert (after["reward"][row].item(), after["terminated"][row].item()) == (reward, terminated)
            if terminated:
                ends += 1
                follow(row)
            np.testing.assert_allclose(state(ours)[row], env.state, rtol=1e-12, atol=1e-15)
    assert ends > 20


def test_random_streams_are_splitmix64() -> None:
    """Against the reference's own numbers for the seed 1234567."""
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = uniform(torch.tensor([1234567]), torch.arange(5))
    assert found.tolist() == [(number >> 11) / 2**53 for number in numbers]


@pytest.mark.parametrize(
    ("place", "change", "reported"),
    [
        (0, lambda state: state[:, :1], r"states of shape \[3, 1\], and \[3, 4\] is needed"),
        (1, lambda reward: reward[:, None], r"rewards of shape \[3, 1\], and \[3\] is needed"),
        (1, lambda reward: 1.0, r"rewards of shape \[\], and \[3\] is needed"),
        (2, lambda terminated: terminated.any(), r"terminations of shape \[\], and \[3\] is needed"),
        (2, lambda terminated: terminated.float(), r"terminations of type torch\.float32, and torch\.bool is needed"),
    ],
)
def test_what_dynamics_must_not_give_is_named(
    place: int, change: Callable[[Any], Any], reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = CartPole(3)
    right = env.dynamics

    def dynamics(*given: Any) -> list[Any]:
        return [change(found) if i == place else found for i, found in enumerate(right(*given))]

    monkeypatch.setattr(env, "dynamics", dynamics)
    with pytest.raises(SimulatorError, match=rf"CartPole\.dynamics gives {reported}"):
        env.rollout(1)


def test_states_that_are_written_into_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    env = CartPole(3)
    right = env.dynamics
    monkeypatch.setattr(env, "dynamics", lambda state, action: right(state.add_(0.1), action))
    with pytest.raises(SimulatorError, match=r"CartPole\.dynamics writes into the states"):
        env.rollout(1)


@pytest.mark.parametrize(
    ("method", "own", "reported"),
    [
        ("observe", lambda state: state.double(), r"of shape \[3, 4\] and type torch\.float64, and shape \[3, 4\] and"),
        ("observe", lambda state: state.float().T, r"of shape \[4, 3\] and type torch\.float32, and shape \[3, 4\]"),
        ("initial", lambda uniform: uniform[0].float(), r"states of shape \[4\], and one of 3 rows is needed"),
    ],
)
def test_what_else_would_broadcast_is_named(
    method: str, own: Any, reported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = CartPole(3)
    monkeypatch.setattr(env, method, own)
    with pytest.raises(SimulatorError, match=rf"CartPole\.{method} gives (.|\n)*{reported}"):
        env.rollout(1)


def test_buffers_of_a_subclass_are_saved() -> None:
    env, other = CartPole(3), CartPole(3)
    for each in (env, other):
        each.register_buffer("level", torch.zeros(()))
    env.level += 2
    state = env.simulator_state()
    env.level += 1
    other.load_simulator_state(state)
    assert other.level == 2
    with pytest.raises(StateUnavailableError, match="buffers that CartPole has not"):
        CartPole(3).load_simulator_state(state)


def test_a_reset_is_of_the_rows_chosen_alone() -> None:
    env = CartPole(4)
    check_env_specs(env)
    env.set_seed(0)
    env.reset()
    before = env.simulator_state()
    for chosen in ([], [1, 3]):
        mask = torch.zeros(4, 1, dtype=torch.bool)
        mask[chosen] = True
        env.reset(TensorDict({"_reset": mask, "done": ~mask & False}, [4]))
        after = env.simulator_state()
        same = (after["state"] == before["state"]).all(-1)
        assert same.tolist() == (~mask[:, 0]).tolist()
        assert (after["episodes"] - before["episodes"])[:, 0].tolist() == mask[:, 0].tolist()


def test_how_an_episode_begins_depends_on_no_other_row() -> None:
    """The second episode of row 1, after one of row 0's or after three."""
    found = []
    for others in (1, 3):
        env = CartPole(2)
        env.set_seed(5)
        for rows in [[0]] * others + [[1]]:
            mask = torch.zeros(2, 1, dtype=torch.bool)
            mask[rows] = True
            env._reset(TensorDict({"_reset": mask}, [2]))
        found.append(state(env)[1].tolist())
    assert found[0] == found[1]
    env.set_seed(6)
    env.reset()
    starts = state(env)
    assert starts.abs().max() <= 0.05
    assert starts.unique().numel() == starts.numel()


def test_saved_simulators_go_on_as_they_would_have() -> None:
    env, other = CartPole(3), CartPole(3)
    env.set_seed(1)
    env.rollout(30, break_when_any_done=False)
    other.load_simulator_state(env.simulator_state())
    actions = torch.randint(2, (40, 3))

    def replayed(env: CartPole) -> Any:
        steps = []
        for action in actions:
            after = env._step(TensorDict({"action": action}, [3]))
            env._reset(TensorDict({"_reset": after["done"]}, [3]))
            steps.append(state(env))
        return torch.stack(steps)

    assert torch.equal(replayed(env), replayed(other))
    wrong: dict[str, Any]
    for wrong in (CartPole(4).simulator_state(), {"qpos": torch.zeros(3)}):
        with pytest.raises(StateUnavailableError, match="not that of 3 CartPole"):
            env.load_simulator_state(wrong)


def test_attributes_of_a_subclass_are_saved_or_named() -> None:
    env, other = CartPole(3), CartPole(3)
    env.last, env.count = torch.ones(3), 2
    state = env.simulator_state()
    env.last += 1
    other.load_simulator_state(state)
    assert (other.last.tolist(), other.count) == ([1, 1, 1], 2)
    assert CartPole(3).simulator_state()["attributes"] == {}
    env.generator = torch.Generator()
    with pytest.raises(StateUnavailableError, match=r"CartPole\.generator is a Generator, which cannot be saved"):
        env.simulator_state()
    with pytest.raises(StateUnavailableError, match=r"CartPole\.dynamics is no part of its state"):
        other.load_simulator_state(state | {"attributes": {"dynamics": 1}})


def test_its_rows_and_its_device_are_the_experiments() -> None:
    config = load_config(["env=torch_cartpole", "env.num_envs=8"]).env
    assert config.build(2).batch_size == (2,)  # an evaluation's
    assert config.on(torch.device("meta")).to_dict()["make"]["device"] == "meta"
    named = load_config(["env=torch_cartpole", "env.make.device=cpu"]).env
    assert named.on("meta").to_dict()["make"]["device"] == "cpu"
    with pytest.raises(ConfigError, match=r"env\.make\.num_envs=3(.|\n)*must be env\.num_envs = 8"):
        load_config(["env=torch_cartpole", "env.num_envs=8", "env.make.num_envs=3"])
