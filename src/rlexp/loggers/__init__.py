"""Loggers, each of which gets a copy of a run's metrics. Imports no torch."""

from rlexp.loggers.config import (
    CsvConfig,
    LoggerConfig,
    NoLoggerConfig,
    SeveralConfig,
    TensorBoardConfig,
    WandbConfig,
)
from rlexp.loggers.sink import Row, Sink

__all__ = [
    "CsvConfig",
    "LoggerConfig",
    "NoLoggerConfig",
    "Row",
    "SeveralConfig",
    "Sink",
    "TensorBoardConfig",
    "WandbConfig",
]
