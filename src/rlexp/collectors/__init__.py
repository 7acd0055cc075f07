"""Collectors: how batches are gathered; torchrl's collectors. Imports no torch."""

from rlexp.collectors.config import (
    CollectorConfig,
    DeviceCollectorConfig,
    MultiAsyncCollectorConfig,
    MultiSyncCollectorConfig,
    RayCollectorConfig,
    Source,
    SyncCollectorConfig,
    WorkersConfig,
)

__all__ = [
    "CollectorConfig",
    "DeviceCollectorConfig",
    "MultiAsyncCollectorConfig",
    "MultiSyncCollectorConfig",
    "RayCollectorConfig",
    "Source",
    "SyncCollectorConfig",
    "WorkersConfig",
]
