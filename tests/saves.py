"""Checkpoints of a made-up state, and a process that dies while it saves one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import TrainState

KILLED = 77


def state(frames: int) -> TrainState:
    return TrainState(
        frames=frames, iteration=frames, evaluator={}, actor={"w": torch.full((3,), frames)}, critic={}, transforms={},
        learner={}, simulators=None, collector={}, callbacks={}, rng={}, unverified=False, inexact=[],
        session={"seconds": {}, "run_id": "a"},
    )  # fmt: skip


def three(run_dir: Path) -> Path:
    for frames in (1, 2, 3):
        checkpoint.save(run_dir / "checkpoints", state(frames), {}, keep_last=3, best=frames == 1)
    return run_dir / "checkpoints"


def killed_save(run_dir: Path, steps: int) -> None:
    """Save a fourth checkpoint, and die before the next call that changes the disk after so many."""
    three(run_dir)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal steps
            steps -= 1
            if steps < 0:
                os._exit(KILLED)
            return real(*arguments, **keywords)

        return call

    for owner, names in ((os, ("fsync", "unlink", "rmdir")), (Path, ("open", "rename", "mkdir"))):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))
    checkpoint.save(run_dir / "checkpoints", state(4), {}, keep_last=2, best=True)
    os._exit(0)
