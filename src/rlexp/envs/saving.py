"""The protocol of environments whose simulators can be saved in the middle of their episodes."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

State = dict[str, Any]


class StateUnavailableError(Exception):
    """A simulator cannot give or take its state; the message says what of it stands in the way."""


@runtime_checkable
class SavesState(Protocol):
    """An environment whose simulators can be saved in the middle of their episodes."""

    def simulator_state(self) -> State:
        """Everything that decides what the simulators do next, as plain values, NumPy arrays and tensors.

        Raises:
            StateUnavailableError: a simulator cannot give its state.
        """

    def load_simulator_state(self, state: State) -> None:
        """Go on exactly where ``simulator_state`` was called.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """


def saving(env: object) -> SavesState:
    """``env`` itself, if its simulators can be saved.

    Raises:
        StateUnavailableError: they cannot.
    """
    # By the class: one of torchrl's batches asks its environments for other names, and may not have made them yet.
    if not issubclass(type(env), SavesState):
        raise StateUnavailableError(f"{type(env).__name__} cannot give its simulators' state")
    return cast("SavesState", env)
