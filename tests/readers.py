"""What runs have written, read back by other means than rlexp's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from commands import run_command

from rlexp.runs import checkpoint
from rlexp.runs.manifest import STATE, TENSORS

Rows = list[dict[str, Any]]


def wandb_rows(offline: Path) -> Rows:
    """The history of an offline W&B run, one process's part of it."""
    read = run_command("wandb", "leet", "inspect", "--json", str(offline), cwd=offline)
    assert read.returncode == 0, read.stderr
    records = [json.loads(line) for line in read.stdout.splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def checkpoint_hashes(run_dir: Path) -> dict[str, str]:
    """What the newest checkpoint of a run holds of the training."""
    newest = checkpoint.load(run_dir).path
    return {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in (STATE, TENSORS)}


def video_frames(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """What ffmpeg finds in an MP4: its metadata, and its frames as raw RGB."""
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    return next(reader), list(reader)
