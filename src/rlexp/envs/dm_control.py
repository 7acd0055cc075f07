"""dm_control's suite under Gymnasium ids; importing this registers them. Needs the extra ``rlexp[dm-control]``."""

from __future__ import annotations

import logging
import warnings
from itertools import groupby

import gymnasium
import mujoco

_handlers = list(logging.root.handlers)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the windows that glfw cannot open
    from dm_control.mujoco.wrapper.mjbindings import sizes

    # dm_control 1.0.50 is made for MuJoCo 3, and reads every array of models and data by name. MuJoCo 4 has a few of
    # them no more, all of soft bodies, which no task of the suite has.
    _model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for _name, _struct in (("mjmodel", _model), ("mjdata", mujoco.MjData(_model))):
        for _gone in [field for field in sizes.array_sizes[_name] if not hasattr(_struct, field)]:
            del sizes.array_sizes[_name][_gone]

    import shimmy  # noqa: F401 - registers the ids
logging.root.handlers[:] = _handlers  # absl adds one, and every line of a run would be logged twice


def tasks() -> dict[str, list[str]]:
    """The tasks of each domain of the suite."""
    names = sorted(id.removeprefix("dm_control/").removesuffix("-v0").split("-") for id in _ids())
    return {domain: [task for _, task in pairs] for domain, pairs in groupby(names, key=lambda pair: pair[0])}


def _ids() -> list[str]:
    return [
        id for id in gymnasium.registry if id.startswith("dm_control/") and id.count("-") == 2 and "-env-" not in id
    ]


def env_id(domain: str, task: str) -> str:
    """Gymnasium's id of a task, which any process can make."""
    return f"{__name__}:dm_control/{domain}-{task}-v0"
