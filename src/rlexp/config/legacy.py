"""Names of earlier versions, so that their saved runs and scripts keep working."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

log = logging.getLogger(__name__)

_CLASSES = {
    "rlexp.collectors": {
        "RolloutCollector": "SyncCollectorConfig",
        "SyncCollector": "SyncCollectorConfig",
        "MultiSyncCollector": "MultiSyncCollectorConfig",
        "MultiAsyncCollector": "MultiAsyncCollectorConfig",
        "RayCollector": "RayCollectorConfig",
    },
    "rlexp.envs": {"GymEnv": "GymConfig", "DmControlEnv": "DmControlConfig", "TorchrlEnv": "TorchrlConfig"},
    "rlexp.loggers": {
        "NoLogger": "NoLoggerConfig",
        "Several": "SeveralConfig",
        "Csv": "CsvConfig",
        "TensorBoard": "TensorBoardConfig",
        "Wandb": "WandbConfig",
    },
    "rlexp.losses": {
        "A2C": "A2CConfig",
        "AnyLoss": "AnyLossConfig",
        "ClipPPO": "ClipPPOConfig",
        "KLPenaltyPPO": "KLPenaltyPPOConfig",
        "Reinforce": "ReinforceConfig",
    },
    "rlexp.optim": {
        "Adam": "AdamConfig",
        "AdamW": "AdamWConfig",
        "AnyOptimizer": "AnyOptimizerConfig",
        "RMSprop": "RMSpropConfig",
        "SGD": "SGDConfig",
    },
    "rlexp.policies": {
        "BetaPolicy": "BetaConfig",
        "CNNPolicy": "CNNConfig",
        "CategoricalPolicy": "CategoricalConfig",
        "GRUPolicy": "GRUConfig",
        "LSTMPolicy": "LSTMConfig",
        "NormalPolicy": "NormalConfig",
        "TanhNormalPolicy": "TanhNormalConfig",
    },
}
_TARGETS = {f"{room}.{old}": f"{room}.{new}" for room, names in _CLASSES.items() for old, new in names.items()}
_TARGETS["rlexp.normalization.RunningObservationNorm"] = "rlexp.envs.normalization.RunningObservationNorm"


# Settings that parts have gained, with the values that mean what earlier versions did.
_ADDED: dict[str, dict[str, Any]] = {
    "env": {"action_mask": False, "flatten": True},
    "policy": {
        **{"scale_init": None, "scale_ub": None, "critic_num_cells": None, "critic_activation_class": None},
        "layer_norm": False,
        **{"actor_keys": None, "critic_keys": None, "encoders": {}, "recurrent_critic": True},
    },
    "loss": {"normalize_value": False, "kl_schedule": "constant"},
    "evaluation": {"average": None},
    "logger": {"artifacts": "none", "registry": None, "alerts": False},
}
_ADDED_AT_THE_TOP: dict[str, Any] = {
    "critic_num_epochs": None,
    "critic_minibatch_size": None,
    "target_kl_check": "epoch",
}


def current_target(target: str) -> str:
    """The current path of a ``_target_``."""
    return _TARGETS.get(target, target)


def current_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config that an earlier version saved, in the current schema; a current one is returned unchanged."""
    config: dict[str, Any] = _current(copy.deepcopy(dict(values)))
    collector = config.get("collector")
    if "kernels" not in config and isinstance(collector, dict):
        # Earlier, collector=sync was torchrl's own collector, and every other run used the kernels.
        before = str(values["collector"].get("_target_", ""))
        config["kernels"] = False if before.endswith(".SyncCollector") or collector.get("inner") == "sync" else "auto"
        collector.pop("inner", None)
        config.setdefault("cuda_graph", False)
    for group, settings in _ADDED.items():
        for part in _parts(config.get(group)):
            fields = _fields(str(part.get("_target_", "")))
            for name, value in settings.items():
                if name in fields or "_target_" not in part:
                    part.setdefault(name, value)
    if "num_epochs" in config:
        for name, value in _ADDED_AT_THE_TOP.items():
            config.setdefault(name, value)
    return config


def _parts(node: object) -> Iterator[dict[str, Any]]:
    """A group's node, and the loggers in one of several."""
    if isinstance(node, dict):
        yield node
        sinks = node.get("sinks")
        for sink in sinks.values() if isinstance(sinks, dict) else ():
            yield from _parts(sink)


def current_override(text: str) -> str | None:
    """An override with current names, with a warning; None if its setting no longer exists."""
    key, _, value = text.partition("=")
    if key.lstrip("+~") == "collector" and value == "rollout":
        log.warning("collector=rollout is now collector=sync; with kernels=auto it collects as collector=rollout did.")
        return "collector=sync"
    if key.lstrip("+~") == "collector.inner":
        log.warning("collector.inner is ignored: kernels=auto or kernels=false decides how each worker collects.")
        return None
    return text


def _fields(target: str) -> Collection[str]:
    """The settings of one of our own schemas; none where the path leads elsewhere."""
    module, _, name = target.rpartition(".")
    if not module.startswith("rlexp."):
        return ()
    try:
        return getattr(getattr(importlib.import_module(module), name, None), "model_fields", ())
    except ImportError:
        return ()


def _current(value: Any) -> Any:
    if isinstance(value, list):
        return [_current(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: current_target(item) if key == "_target_" and isinstance(item, str) else _current(item)
        for key, item in value.items()
    }
