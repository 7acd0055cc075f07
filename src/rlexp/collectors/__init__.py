"""Collectors: how batches are gathered; torchrl's collectors. Imports no torch."""

from rlexp.collectors.config import (
    CollectorConfig,
    MultiAsyncCollectorConfig,
    MultiSyncCollectorConfig,
    RayCollectorConfig,
    Source,
    SyncCollectorConfig,
    WorkersConfig,
)

__all__ = [
    "CollectorConfig",
    "MultiAsyncCollectorConfig",
    "MultiSyncCollectorConfig",
    "RayCollectorConfig",
    "Source",
    "SyncCollectorConfig",
    "WorkersConfig",
]
