"""Folders that may have come from anyone: nothing is written through a link in them."""

from __future__ import annotations

import stat
from pathlib import Path

from rlexp.runs.errors import CheckpointError
from rlexp.runs.rundir import RunDir

_FILES = (
    ".lock",
    "config.yaml",
    "metadata.json",
    "metrics.jsonl",
    "metrics.csv",
    "summary.json",
    "train.log",
    "git.diff",
)
_FOLDERS = ("checkpoints", "plots", "videos", "tensorboard", "wandb")


def refuse_links(run: RunDir) -> None:
    """Refuse a run's folder with files that are links, pipes or folders: what is written to them would go elsewhere.

    So would what W&B uploads, by a file of settings that it never leaves there itself.

    Raises:
        CheckpointError: with the first such file.
    """
    for path in run.path.iterdir() if run.path.is_dir() else ():
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # by a process that writes the run, which has renamed what it had written aside
            continue
        own = path.name in _FILES or path.name.endswith(".tmp")
        if own and not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is no regular file, so no run can be written to its folder.")
        if path.name in _FOLDERS and not stat.S_ISDIR(mode):
            message = "is a link or no folder, so no run can be written there: replace it by a folder"
            raise CheckpointError(f"{path} {message}, and move into that what it led to.")
    settings = run.path / "wandb" / "settings"
    if settings.is_symlink() or settings.exists():
        raise CheckpointError(f"{settings} tells W&B which server to log to, and no run leaves such a file: remove it.")


def refuse_linked_runs(folder: Path, depth: int) -> None:
    """Refuse the folder of a sweep or a search in which a run's own folder is a link, or is reached through one.

    Args:
        folder: of the sweep or the search.
        depth: how far below it the runs' folders are.

    Raises:
        CheckpointError: with the first link.
    """
    for path in sorted(folder.iterdir()) if depth and folder.is_dir() else []:
        if path.is_dir():
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link, and its runs would be written elsewhere: put a folder there.")
            refuse_linked_runs(path, depth - 1)
