"""Names that earlier versions gave to things: runs that were saved with them, and scripts, go on working."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
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


def current_target(target: str) -> str:
    """Today's path of a ``_target_``."""
    return _TARGETS.get(target, target)


def current_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config that an earlier version saved, as today's schema has it; today's own is returned unchanged."""
    config: dict[str, Any] = _current(copy.deepcopy(dict(values)))
    collector = config.get("collector")
    if "kernels" not in config and isinstance(collector, dict):
        # Until then collector=sync meant torchrl's own collector, and everything else the kernels.
        before = str(values["collector"].get("_target_", ""))
        config["kernels"] = False if before.endswith(".SyncCollector") or collector.get("inner") == "sync" else "auto"
        collector.pop("inner", None)
        config.setdefault("cuda_graph", False)
    policy = config.get("policy")
    if isinstance(policy, dict) and "scale_lb" in policy:
        policy.setdefault("scale_init", None)
    return config


def current_override(text: str) -> str | None:
    """A command line's override by today's names, with a warning; None where it has no meaning any more."""
    key, _, value = text.partition("=")
    if key.lstrip("+~") == "collector" and value == "rollout":
        log.warning("collector=rollout is now collector=sync: kernels=auto collects by arrays where it can.")
        return "collector=sync"
    if key.lstrip("+~") == "collector.inner":
        log.warning("collector.inner is no setting any more: kernels=auto or false decides how each worker collects.")
        return None
    return text


def _current(value: Any) -> Any:
    if isinstance(value, list):
        return [_current(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: current_target(item) if key == "_target_" and isinstance(item, str) else _current(item)
        for key, item in value.items()
    }
