"""A run's folder: where its files lie, and the ones that say what was run on what."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_PACKAGES = ("rlexp", "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy", "hydra-core", "wandb")


class RunDir:
    """The layout of one run's folder.

    Args:
        path: the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self.config = self.path / "config.yaml"
        self.metadata = self.path / "metadata.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.log = self.path / "train.log"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Save the resolved config."""
        self.config.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")

    def write_metadata(self, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Save what is needed to run it again: command line, versions, commit, hardware, and ``info``.

        Where the commit has uncommitted changes, they are saved beside it as ``git.diff``.
        """
        git = _git()
        if git is not None and (diff := git.pop("diff")):
            (self.path / "git.diff").write_text(diff, encoding="utf-8")
        values = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config_sha256": config_hash(config),
            "git": git,
            "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
            "hardware": {"machine": platform.platform(), "cpus": usable_cpus()},
        }
        write_json(self.metadata, values | dict(info))


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config; equal for equal settings, whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file as a whole, never half of it."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git() -> dict[str, Any] | None:
    """The commit of the code that the user ran in, or None outside a repository."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout

    try:
        commit, dirty = ask("rev-parse", "HEAD").strip(), bool(ask("status", "--porcelain"))
        return {"commit": commit, "dirty": dirty, "diff": ask("diff", "HEAD") if dirty else ""}
    except (OSError, subprocess.SubprocessError):
        return None
