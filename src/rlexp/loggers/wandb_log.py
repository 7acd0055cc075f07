"""Read back what W&B's client has written to its local transaction logs."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from rlexp.files import read_regular

# The format is LevelDB's log, after 7 bytes of W&B's own: blocks of 32 KiB with records, each in one or more fragments.
# https://github.com/google/leveldb/blob/main/doc/log_format.md
_BLOCK = 32768
_LARGEST = 2**32  # bytes
_HEADER = struct.Struct("<IHB")  # checksum, length, type of a fragment; W&B's own header has as many bytes
_FULL, _FIRST, _LAST = 1, 2, 4


def logged_rows(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """The rows that earlier processes of a run logged, from all logs of the run in a folder.

    Args:
        folder: the folder that holds ``wandb/``.
        run_id: the run's W&B id.
    """
    # W&B numbers the folders of runs that begin within the same second: offline-run-20260101_000000-ID-1.
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")):
        for data in _records(read_regular(path, _LARGEST)):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records of a log; a last one that a killed process left incomplete is passed over."""
    position, record = _HEADER.size, b""
    while position + _HEADER.size <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER.size:  # padding at the end of a block
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        if kind == 0 or position + length > len(data):
            return
        fragment = data[position : position + length]
        position += length
        record = fragment if kind in (_FULL, _FIRST) else record + fragment
        if kind in (_FULL, _LAST):
            yield record
