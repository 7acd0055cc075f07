"""Action spaces in the form that policies act in, and action masks from every source."""

from __future__ import annotations

from typing import Any

import choosing
import numpy as np
import pytest
import torch
from choosing import ACTIONS, values_of
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Composite, MultiCategorical, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs import EnvConfig
from rlexp.envs.actions import choices, in_own_form, policy_space
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.envs.normalization import init_normalization

ID = "choosing:Choosing-v0"
MASKED = [kind for kind in ACTIONS if not kind.startswith("box")]


def config(**kwargs: Any) -> EnvConfig:
    return load_config(["env=gym", f"env.id={ID}", *(f"env.kwargs.{key}={value}" for key, value in kwargs.items())]).env


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_every_action_has_one_form_for_policies_and_comes_back_as_its_own(space: spaces.Space[Any]) -> None:
    form, own = policy_space(space), in_own_form(space)
    form.seed(0)
    space.seed(0)
    assert len(form.shape) == 1 or isinstance(form, spaces.Discrete)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        assert choices(form) is None
        action = space.sample()
        np.testing.assert_array_equal(own(np.ravel(action)), action)
        return
    sizes = values_of(space)
    assert choices(form) == sizes
    lowest, highest = (own(np.reshape(np.array(n), form.shape)) for n in ([0] * len(sizes), [n - 1 for n in sizes]))
    assert np.array_equal(lowest, np.zeros(space.shape) + choosing.lowest_of(space))
    for action in (lowest, highest, *(own(form.sample()) for _ in range(20))):
        assert space.contains(action)
    assert not space.contains(highest + 1)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (spaces.Box(0, 5000, (2,), np.int32), "integers of more than 1,024 values"),
        (spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64), "integers of more than 1,024 values"),
        (spaces.Box(0, 1, (0,)), "has no numbers"),
        (spaces.Box(0.5, 0.5, (2,)), r"action space Box\(0\.5, 0\.5, \(2,\), float32\) has a single action"),
        (spaces.Dict(a=spaces.Discrete(2)), "a Box, Discrete, MultiDiscrete or MultiBinary is needed"),
    ],
)
def test_actions_without_such_a_form_are_refused(
    space: spaces.Space[Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACTIONS, "other", space)
    with pytest.raises(ConfigError, match=rf"env\.id=.*(.|\n)*{reason}"):
        BatchedGymEnv(ID, num_envs=1, kwargs={"action": "other"})


def test_an_action_may_have_numbers_that_cannot_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    space = spaces.Box(np.zeros(2, np.float32), np.array([0, 1], np.float32))
    monkeypatch.setitem(ACTIONS, "other", space)
    env = BatchedGymEnv(ID, num_envs=1, kwargs={"action": "other"})
    env.set_actions(np.array([[2.0, 0.5]], np.float32))
    assert env.arrays.action.tolist() == [[0, 0.5]]


@pytest.mark.parametrize("mask", ["entry", "info", "parts"])
@pytest.mark.parametrize("kind", MASKED)
def test_random_actions_are_allowed_by_the_masks(kind: str, mask: str) -> None:
    """The environment itself asserts it."""
    env = BatchedGymEnv(
        ID, num_envs=3, kwargs={"action": kind, "mask": mask}, action_mask="auto" if mask == "entry" else "info"
    )
    flags = sum(values_of(ACTIONS[kind]))
    assert env.observation_spec["action_mask"].shape == (3, flags)
    assert env.observation_spec["observation"].shape == (3, 3)
    env.set_seed(0)
    first = env.reset()
    given = [simulator.unwrapped.given[-1] for simulator in env._simulators.envs]
    np.testing.assert_array_equal(first["observation"], [seen for seen, _ in given])
    np.testing.assert_array_equal(first["action_mask"], [allowed for _, allowed in given])
    env.seconds_per_step()


def test_masks_pass_through_transforms_processes_and_snapshots() -> None:
    spec = config(action="multi", mask="entry")
    env, other = spec.build(4), spec.model_copy(update={"num_workers": 2}).build(4)
    rows = []
    for each in (env, other):
        each.set_seed(0)
        torch.manual_seed(0)
        init_normalization(each, 50)
        check_env_specs(each)
        each.set_seed(1)
        rows.append(each.rollout(30, break_when_any_done=False))
    assert rows[0]["next", "done"].any()
    for key in ("observation", "action_mask", ("next", "action_mask"), "action"):
        assert torch.equal(rows[0][key], rows[1][key]), key
    base, state = env.base_env, env.base_env.simulator_state()
    standing = base.arrays.action_mask.copy()
    base.reset_arrays(range(4))
    base.load_simulator_state(state)
    np.testing.assert_array_equal(base.arrays.action_mask, standing)
    other.close()


def test_a_mask_that_allows_nothing_is_named_where_it_appears() -> None:
    env = BatchedGymEnv(ID, num_envs=2, kwargs={"action": "multi", "mask": "entry", "nothing_at": 3, "ends": 0})
    env.set_seed(0)
    env.reset_arrays([0, 1])
    for _ in range(2):
        env.set_actions(
            np.stack([[np.argmax(part) for part in np.split(row, [2, 6])] for row in env.arrays.action_mask])
        )
        env.step_arrays()
    with pytest.raises(SimulatorError, match=r"simulator 0 of .*Choosing-v0 failed.*none of the values of choice 0"):
        env.step_arrays()


def test_an_action_that_a_mask_forbids_does_not_reach_the_simulator() -> None:
    env = BatchedGymEnv(ID, num_envs=2, kwargs={"mask": "entry"})
    env.set_seed(0)
    env.reset()
    action = env.arrays.action_mask.argmax(-1)
    env.set_actions(action)
    assert not env.arrays.action_mask[1].all()
    action[1] = env.arrays.action_mask[1].argmin()
    with pytest.raises(
        SimulatorError, match=rf"action \[{action[1]}\] of simulator 1 is not allowed by its action_mask"
    ):
        env.set_actions(action)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (None, r"info has no action_mask, which env\.action_mask=info asks for"),
        (np.ones(3, np.int8), "the action_mask has 3 flags, and the action 4 values"),
        (np.array([0, -1e9, 0, 0]), "and flags or 0 and 1 are needed"),
        (np.zeros(4, np.int8), "allows none of the values, and the episode goes on"),
    ],
)
def test_a_mask_in_info_that_is_none_is_refused(mask: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    see = choosing.Choosing._see

    def other(self: choosing.Choosing, *, ended: bool) -> tuple[Any, dict[str, Any]]:
        return see(self, ended=ended)[0], {} if mask is None else {"action_mask": mask}

    monkeypatch.setattr(choosing.Choosing, "_see", other)
    with pytest.raises(SimulatorError, match=f"simulator 0 of {ID} failed: ValueError: .*{reason}"):
        BatchedGymEnv(ID, num_envs=1, action_mask="info").reset()


def test_settings_that_no_mask_fits_are_refused() -> None:
    real = r"its info has an action_mask, and its actions are real numbers(.|\n)*env\.action_mask=false"
    with pytest.raises(ConfigError, match=real):
        BatchedGymEnv(ID, num_envs=1, kwargs={"action": "box"}, action_mask="info")
    with pytest.raises(ConfigError, match=r"env\.frame_skip=2(.|\n)*must be 1 with an action_mask"):
        BatchedGymEnv(ID, num_envs=1, kwargs={"mask": "entry"}, frame_skip=2)
    with pytest.raises(ConfigError, match=r"env\.backend=mujoco(.|\n)*its tasks have no env\.action_mask"):
        load_config(["env=hopper", "env.backend=mujoco", "env.action_mask=info"])
    with pytest.raises(ConfigError, match=r"env\.action_mask=info(.|\n)*use env\.backend=gymnasium"):
        load_config(["env=cartpole", "env.backend=envpool", "env.action_mask=info"])
    with pytest.raises(ConfigError, match=r"'action_mask' is called like something else(.|\n)*env\.flatten=true"):
        BatchedGymEnv(ID, num_envs=1, kwargs={"mask": "entry"}, action_mask=False)
    plain = BatchedGymEnv(ID, num_envs=1, kwargs={"mask": "entry"}, action_mask=False, flatten=True)
    assert plain.reset()["observation"].shape == (1, 4 + 3)  # an entry like any other


def test_masks_of_taxi_are_its_own() -> None:
    env = load_config(["env=gym", "env.id=Taxi-v4", "env.action_mask=info", "env/transforms=none"]).env.build(2)
    env.set_seed(0)
    steps = env.rollout(40, break_when_any_done=False)
    expected = [simulator.unwrapped.action_mask(simulator.unwrapped.s) for simulator in env.base_env._simulators.envs]
    np.testing.assert_array_equal(steps["next", "action_mask"][:, -1], expected)


class Board(EnvBase):  # type: ignore[misc]
    """Two choices, whose masks are an entry of a torchrl environment."""

    def __init__(self, flags: int = 5, nothing: bool = False) -> None:
        super().__init__()
        self.nothing, self.flags = nothing, flags
        self.action_spec = MultiCategorical([2, 3], shape=(2,))
        self.observation_spec = Composite(board=Unbounded((4,)), action_mask=Binary(flags, dtype=torch.bool))
        self.reward_spec, self.done_spec = Unbounded((1,)), Composite(done=Binary(1, dtype=torch.bool))

    def _see(self) -> dict[str, torch.Tensor]:
        self.mask = torch.rand(self.flags) < 0.5
        self.mask[[0, 3]] |= ~torch.stack([self.mask[:2].any(), self.mask[2:].any()])
        return {"board": torch.rand(4), "action_mask": self.mask}

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return TensorDict(self._see())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        assert self.mask[tensordict["action"] + torch.tensor([0, 2])].all()
        seen = self._see()
        if self.nothing:
            seen["action_mask"][:2] = False
        return TensorDict({**seen, "reward": torch.ones(1), "done": torch.zeros(1, dtype=torch.bool)})

    def _set_seed(self, seed: int | None) -> None:
        pass


TORCHRL = ["env=torchrl", f"env.make._target_={__name__}.Board", "env.transforms.step_counter.max_steps=10"]


def test_masks_of_torchrl_environments_are_honoured_and_checked() -> None:
    env = load_config([*TORCHRL, "env.num_envs=2", "policy=categorical"]).env.build(2)
    init_normalization(env, 20)
    assert env.rollout(30, break_when_any_done=False)["observation"].shape == (2, 30, 4)
    for setting, error, reason in (
        ("flags=4", ConfigError, r"action_mask, torch\.bool \[4\], that is no bool flag for each value"),
        ("nothing=true", SimulatorError, "an action_mask allows none of the values of an action"),
    ):
        with pytest.raises(error, match=reason):
            load_config([*TORCHRL, f"env.make.{setting}", "policy=categorical", "env/transforms=none"]).env.build(
                1
            ).rollout(2)


def test_runs_of_before_do_not_read_masks() -> None:
    from rlexp.config.legacy import current_config

    saved = {"env": {"_target_": "rlexp.envs.GymConfig", "id": "Taxi-v4"}}
    assert current_config(saved)["env"]["action_mask"] is False
