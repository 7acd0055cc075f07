"""rlexp: reinforcement-learning experiments you can trust.

from rlexp import Trainer, load_config, load_policy

summary = Trainer.from_config(load_config(["env=hopper", "seed=3"])).fit()
policy = load_policy(summary["checkpoint"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlexp.agent import load_policy
    from rlexp.experiment import load_config
    from rlexp.training.trainer import Trainer

_HOMES = {"Trainer": "rlexp.training.trainer", "load_config": "rlexp.experiment", "load_policy": "rlexp.agent"}

__all__ = ["Trainer", "load_config", "load_policy"]


def __getattr__(name: str) -> Any:
    # Imported when first used: commands that only read a config must not wait seconds for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
