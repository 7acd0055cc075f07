"""What an environment may keep its state in: saved whole, or refused by name."""

from __future__ import annotations

import copy
import enum
import json
import logging
import re
from collections import deque
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from rlexp.envs.gymnasium.snapshot import check_state, get_state, set_state
from rlexp.envs.saving import StateUnavailableError
from rlexp.runs.packing import pack, unpack


class Phase(enum.Enum):
    APPROACH = 0
    LIFT = 1


class Base(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1), self.reward(), False, False, {}

    def reward(self) -> float:
        raise NotImplementedError


class Enums(Base):
    """Members of an Enum, alone and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.seen, self.table = Phase.APPROACH, deque([Phase.APPROACH]), {"last": [Phase.APPROACH]}

    def reward(self) -> float:
        if self.t % 3 == 0:
            self.phase = Phase.LIFT if self.phase is Phase.APPROACH else Phase.APPROACH
            self.seen.append(self.phase)
            self.table["last"] = [self.phase, *self.table["last"]]
        lifted = sum(phase is Phase.LIFT for phase in [*self.seen, *self.table["last"]])
        return float(self.phase is Phase.LIFT) + 10 * lifted


class Methods(Base):
    """One of its own methods."""

    def __init__(self) -> None:
        super().__init__()
        self.act = self._low

    def _low(self) -> float:
        return 0.0

    def _high(self) -> float:
        return 1.0

    def reward(self) -> float:
        if self.t % 3 == 0:
            self.act = self._high if self.act == self._low else self._low
        return self.act()


class Inner(Base):
    """Another environment."""

    def __init__(self) -> None:
        super().__init__()
        self.plant = gymnasium.make("Pendulum-v1")
        self.plant.reset(seed=3)

    def reward(self) -> float:
        return float(self.plant.step(np.full(1, 0.3, np.float32))[1])


class Slots(Base):
    """Slots."""

    __slots__ = ("hidden",)

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0

    def reward(self) -> float:
        self.hidden += 1
        return float(self.hidden)


class ClassVariable(Base):
    """A variable of its class, which a subclass does not have a copy of."""

    count = 0

    def reward(self) -> float:
        ClassVariable.count += 1
        return float(ClassVariable.count)


class Sub(ClassVariable):
    pass


class Spaces(Base):
    """Spaces that goals are drawn from, one within another."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = gymnasium.spaces.Discrete(3)
        self.goals = gymnasium.spaces.Dict(
            {"a": gymnasium.spaces.Box(0, 1), "b": gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(9)])}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.goals.seed(seed)
        return super().reset(seed=seed)

    def reward(self) -> float:
        goal = self.goals.sample()
        return float(goal["a"][0]) + float(goal["b"][0])


class Names(Base):
    """Two names for one list, array or generator, some of which a constructor does not make."""

    def __init__(self) -> None:
        super().__init__()
        self.times = self.history = []  # type: ignore[var-annotated]
        self.goals = gymnasium.spaces.Discrete(9)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = super().reset(seed=seed)
        self.rng, self.goal_rng = self.np_random, self.goals.np_random
        self.position = self.start = np.zeros(2)
        self.frames = deque([self.position] * 2, maxlen=3)
        return result

    def reward(self) -> float:
        self.times.append(self.t)
        self.position += self.rng.random() + self.goal_rng.random()
        self.frames.append(self.position if self.t % 2 else self.position.copy())
        drawn = self.np_random.random() + float(self.goals.sample())
        return float(len(self.history) + self.start.sum() + np.sum(self.frames) + drawn)


class Parted(Base):
    """A generator that was another attribute's, too, until the reset."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = self.np_random

    def reward(self) -> float:
        return float(self.rng.random() - 2 * self.np_random.random())


class OfClass(Base):
    """A generator, a space and a deque of the class."""

    rng = np.random.default_rng(0)
    goals = gymnasium.spaces.Box(0, 1, seed=0)
    seen: ClassVar[deque[float]] = deque(maxlen=3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.noise = self.rng
        return super().reset(seed=seed)

    def reward(self) -> float:
        self.seen.append(self.rng.random() + self.noise.random() + float(self.goals.sample()[0]))
        return sum(self.seen)


@pytest.mark.parametrize("cls", [Enums, Methods, Inner, Slots, ClassVariable, Sub, Spaces, Names, Parted, OfClass])
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_it_is_saved_whole(cls: type[Base], steps: int) -> None:
    ClassVariable.count = 0
    env = cls()
    env.reset(seed=0)
    for _ in range(steps):
        env.step(np.zeros(1))
    state = copy.deepcopy(get_state(env))
    expected = [env.step(np.zeros(1))[1] for _ in range(8)]
    assert len(set(expected)) > 1
    ClassVariable.count = 0
    fresh = cls()
    check_state(fresh, state)
    set_state(fresh, state)
    assert [fresh.step(np.zeros(1))[1] for _ in range(8)] == expected


def test_the_state_is_plain_data() -> None:
    env = Enums()
    text = json.dumps(get_state(env)["layers"][0]["values"])
    assert "APPROACH" in text


def test_an_unknown_member_of_an_enum_is_refused() -> None:
    env = Enums()
    state = get_state(env)
    state["layers"][0]["values"]["phase"] = {"__enum__": ["os", "system", "call"]}
    with pytest.raises(StateUnavailableError, match=r"os\.system\.call is no member of an Enum"):
        set_state(env, state)


class Closure(Base):
    def __init__(self) -> None:
        super().__init__()
        n = 0

        def count() -> int:
            nonlocal n
            n += 1
            return n

        self.count = count


class Iterates(Base):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter(range(100))


class IteratesForAll(Base):
    numbers = iter(range(100))


class Helped(Base):
    def __init__(self) -> None:
        super().__init__()
        self.draw = self.np_random.random


class HelpedForAll(Base):
    act = Methods()._low


class Views(Base):
    def __init__(self) -> None:
        super().__init__()
        self.state = np.zeros(4)
        self.position = self.state[:2]


class ListOfViews(Base):
    def __init__(self) -> None:
        super().__init__()
        state = np.zeros(4)
        self.parts = [state[:3], state[1:]]


class Masked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.readings = np.ma.masked_array([1.0, 2.0], mask=[False, True])


class Cell(enum.IntEnum):
    WALL = 1


class ByMember(Base):
    def __init__(self) -> None:
        super().__init__()
        self.counts = {Cell.WALL: 3}


class Game(Base):
    """What pygame draws may be left out, where its objects are may not."""

    def __init__(self) -> None:
        super().__init__()
        pygame = pytest.importorskip("pygame", reason="the extra rlexp[box2d] is not installed")
        self.screen, self.clock = pygame.Surface((4, 4)), pygame.time.Clock()
        self.player = pygame.Rect(0, 0, 1, 1)


def test_a_matrix_stays_in_the_order_of_its_columns() -> None:
    env, fresh = Base(), Base()
    env.weights = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    packed, tensors = pack(get_state(env))
    set_state(fresh, unpack(json.loads(json.dumps(packed)), lambda kind, name: tensors[name].numpy()))
    assert fresh.weights.tolist() == env.weights.tolist()
    assert fresh.weights.flags.f_contiguous


@pytest.mark.parametrize(
    ("cls", "reported"),
    [
        (Masked, "readings is a MaskedArray"),
        (ByMember, "counts is a dict"),
        (Game, "player is a Rect"),
        (Closure, "count is a function that may hold state"),
        (Iterates, "numbers is a range_iterator"),
        (IteratesForAll, "numbers is a range_iterator"),
        (Helped, "draw is a function that may hold state"),
        (HelpedForAll, "act is a method"),
        (Views, r"(state|position) and Views\.(position|state) are views of the same numbers"),
        (ListOfViews, r"parts and ListOfViews\.parts are views of the same numbers"),
    ],
)
def test_what_cannot_be_saved_is_named(cls: type[Base], reported: str) -> None:
    with pytest.raises(StateUnavailableError, match=rf"{cls.__name__}\.{reported}"):
        get_state(cls())


class Harmless(HopperEnv):  # type: ignore[misc]
    """What cannot change, arrays that lie side by side, and views into the physics."""

    log, pattern, allowed = logging.getLogger("harmless"), re.compile("a"), frozenset({1, 2})

    @staticmethod
    def scale(x: float) -> float:
        return x

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = np.arange(10.0).reshape(5, 2).T
        self.joints, self.legs = self.data.qpos, self.data.qpos[2:]
        self.root = float.fromhex


def test_what_cannot_change_or_is_no_copy_is_no_obstacle() -> None:
    env, fresh = Harmless(), Harmless()
    env.reset(seed=0)
    env.step(np.ones(3))
    state = get_state(env)
    check_state(fresh, state)
    set_state(fresh, state)
    np.testing.assert_array_equal(fresh.legs, env.data.qpos[2:])
    assert np.shares_memory(fresh.legs, fresh.data.qpos)


def test_a_state_of_an_earlier_version_is_taken() -> None:
    env, fresh = Enums(), Enums()
    env.seen.append(Phase.LIFT)
    state = get_state(env)
    (layer,) = state["layers"]
    layer["values"]["seen"], _ = layer["values"]["seen"]["__deque__"]
    layer["class_values"] = {part["class"]: part["values"] for part in layer.pop("classes")}
    check_state(fresh, state)
    set_state(fresh, state)
    assert fresh.seen == deque([Phase.APPROACH, Phase.LIFT])


def test_a_reference_to_nothing_is_refused() -> None:
    env = Enums()
    state = get_state(env)
    state["layers"][0]["values"]["table"] = {"__same__": 99}
    with pytest.raises(StateUnavailableError, match="refers to a value that is not in it"):
        set_state(env, state)


def test_a_function_that_another_one_replaced_is_refused() -> None:
    env = Base()
    env.shape = len
    state = get_state(env)
    other = Base()
    other.shape = sum
    with pytest.raises(StateUnavailableError, match=r"Base\.shape is a different function"):
        check_state(other, state)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("values", "step", 0),
        ("functions", "reset_model", {"method": (-1, "_initialize_simulation")}),
        ("functions", "np_random", {"method": (-1, "reset")}),
    ],
)
def test_a_strangers_state_chooses_no_method(kind: str, name: str, value: Any) -> None:
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    state = get_state(env)
    check_state(env, state)
    state["layers"][-1].setdefault(kind, {})[name] = value
    with pytest.raises(StateUnavailableError, match=rf"HopperEnv\.{name} is "):
        check_state(env, state)


@pytest.mark.parametrize("name", ["fullpath", "_ezpickle_kwargs"])
def test_a_strangers_state_chooses_no_file(name: str) -> None:
    """The next reset would load it."""
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    state, before = get_state(env), getattr(env.unwrapped, name)
    state["layers"][-1]["values"][name] = "/somewhere/evil.xml"
    check_state(env, state)
    set_state(env, state)
    assert getattr(env.unwrapped, name) == before
