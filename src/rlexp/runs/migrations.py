"""Checkpoints of earlier formats, brought to the current one.

Format 3: simulators that end an episode are reset when asked. Format 4: they are reset at once, and their first
observation waits for the next step. Format 5: each part of a run owns its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FORMATS = (3, 4)
"""The earlier formats that are read."""


def migrated(found: int, fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a checkpoint's state as the current format has them.

    Args:
        found: the checkpoint's format.
        fields: the fields of its state, the session left out.
        config: its config.
    """
    state = dict(fields)
    if found == 3:
        state = _with_first_observations(state) | {"callbacks": {}}
    state = _owned(state)
    if (difference := _difference(config)) is not None:
        state["inexact"] = [*state["inexact"], f"it was saved in format {found}, when {difference}"]
    return state


def _with_first_observations(state: dict[str, Any]) -> dict[str, Any]:
    def simulators(values: dict[str, Any]) -> dict[str, Any]:
        if "workers" in values:
            return {"workers": [simulators(worker) for worker in values["workers"]]}
        if "arrays" not in values:
            return values
        observation, reward, terminated, truncated = values["arrays"]
        fresh = [np.zeros_like(observation), np.zeros_like(terminated)]
        return values | {"arrays": [observation, reward, terminated, truncated, *fresh]}

    if state["simulators"] is not None:
        state["simulators"] = simulators(state["simulators"])
    return state


def _owned(state: dict[str, Any]) -> dict[str, Any]:
    """The fields of formats 3 and 4 by the parts that own them, recurrent networks under their new names."""
    learner = {name: state.pop(name) for name in ("reward_norm", "loss", "optimizer", "scheduler")}
    evaluator = {name: state.pop(name) for name in ("final", "best", "best_frames")} | {"simulators": None}
    networks = {name: {_renamed(key): value for key, value in state[name].items()} for name in ("actor", "critic")}
    parts = {"learner": learner, "evaluator": evaluator, "collector": _collector(state["collector"])}
    return state | networks | parts | {"simulators": _episodes(state["simulators"]), "unverified": False}


def _episodes(simulators: Any) -> Any:
    if simulators is None:
        return None
    if "workers" in simulators:
        return {"workers": [_episodes(worker) for worker in simulators["workers"]]}
    return {"simulators": simulators, "transforms": {}}


def _renamed(parameter: str) -> str:
    names = {"memory": "core", "beside": "critic_core"}
    return ".".join(names.get(part, part) for part in parameter.split("."))


def _collector(state: dict[str, Any]) -> dict[str, Any]:
    state = dict(state)
    if "memory" in state:
        state["recurrent"] = state.pop("memory")
    if "workers" in state:
        state["workers"] = [worker | {"collector": _collector(worker["collector"])} for worker in state["workers"]]
    return state


def _difference(config: Mapping[str, Any]) -> str | None:
    """What is computed otherwise since formats 3 and 4, if it changes this run."""
    if config["kernels"] is False:
        return "collector=sync had its loss computed by a kernel; torchrl's own loss is equal up to rounding"
    # torch fills 16 normal numbers at a time: draws of a multiple of 16 numbers are the same one by one as at once.
    if int(config["env"]["num_envs"]) % 16:
        return "the noise of a batch was drawn at once; now it is drawn step by step"
    return None
