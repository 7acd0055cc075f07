"""A run's folder: where its files lie, and the ones that say what was run on what."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from rlexp.config import flat
from rlexp.config.redaction import redact, redact_source
from rlexp.errors import RlexpError
from rlexp.files import lock, locks_are_local, open_lock, write_json, write_text
from rlexp.machine import resource_use, this_process, usable_cpus

log = logging.getLogger(__name__)

_PACKAGES = ("rlexp", "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy", "hydra-core", "wandb")


MACHINE_SETTINGS = ("device", "threads", "env.num_workers", "env.backend", "compile", "cuda_graph")
"""What a resume may change that decides how a batch is computed, and so its last digits."""
_LOCK = ".lock"


class RunBusyError(RlexpError):
    """Another process works in the run's folder; the message says which."""


class RunDir:
    """The layout of one run's folder.

    Args:
        path: the folder; made when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config = self.path / "config.yaml"
        self.metadata = self.path / "metadata.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.log = self.path / "train.log"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.videos = self.path / "videos"
        self._made: list[Path] = []
        self._lock: IO[str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The same folder in another process, which does not hold its lock."""
        return RunDir, (self.path,)

    @property
    def started(self) -> bool:
        """Whether a run has left anything here that training again would spoil."""
        logged = self.metrics.exists() and self.metrics.stat().st_size > 0
        # A first checkpoint that was never finished, of a process that was killed, is nothing yet.
        saved = self.checkpoints.is_dir() and any(path.name[0] != "." for path in self.checkpoints.iterdir())
        return logged or saved

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or the end of this process, however it ends.

        Raises:
            RunBusyError: another process is at work here.
            OSError: the folder cannot be written, or its file system has no locks.
        """
        if self._lock is not None:
            return
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        file = open_lock(self.path / _LOCK)
        try:
            lock(file, wait=False)
        except BlockingIOError as error:
            owner = file.readline().strip()
            file.close()
            raise RunBusyError(f"{self.path} is in use by {owner or 'another process'}.") from error
        except OSError:
            file.close()
            self.discard()
            raise
        if locks_are_local(self.path):
            message = "%s is mounted so that locks keep out this machine's processes alone: take care that no other "
            log.warning(message + "machine starts or resumes this run as well.", self.path)
        file.truncate(0)
        file.write(this_process())
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.truncate(0)  # so that a process named in the file holds the lock, or died while it did
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """`unlock`, and remove the folder where it holds nothing but the lock, with the parents made for it."""
        self.unlock()
        if self.path.is_dir() and [entry.name for entry in self.path.iterdir()] == [_LOCK]:
            (self.path / _LOCK).unlink()
            with suppress(OSError):  # another run is in one of them
                for folder in (self.path, *self._made):
                    folder.rmdir()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Save the resolved config."""
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def write_metadata(
        self, config: Mapping[str, Any], info: Mapping[str, Any], frames: int, total_frames: int
    ) -> None:
        """Save what is needed to run it again: command line, versions, commit, hardware, and ``info``.

        Where the commit has uncommitted changes, they are saved beside it as ``git.diff``, without secrets.

        Args:
            config: the resolved config.
            info: further entries.
            frames: where this process starts; each start is an entry of ``sessions``.
            total_frames: the budget it was started with.
        """
        before = _sessions(self.metadata) if self.metadata.exists() else []
        git, changes = _git(), ""
        if git is not None and (diff := git.pop("diff")):
            # Without the sign in front, a line is one of a file.
            lines = diff.split("\n")
            hidden = redact_source([line[1:] for line in lines])
            changes = "\n".join(line[:1] + rest for line, rest in zip(lines, hidden, strict=True))
        session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": redact([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "frames": frames,
            "total_frames": total_frames,
            "versions": versions(),
            "code": None if git is None else _code(git, changes),
            "settings": {key: value for key, value in flat(config) if key in MACHINE_SETTINGS},
        }
        sessions = [*(entry for entry in before if entry["frames"] < frames), session]
        (self.path / "git.diff").unlink(missing_ok=True)  # that of an earlier session
        if changes:
            write_text(self.path / "git.diff", changes)
        values = {
            "command": sessions[0]["command"],
            "started": sessions[0]["started"],
            "sessions": sessions,
            "config_sha256": config_hash(config),
            "git": git,
            "versions": versions(),
            "hardware": {"machine": platform.platform(), "cpus": usable_cpus()},
        }
        write_json(self.metadata, values | dict(info))


def add_resources(metadata: Path, before: Mapping[str, float]) -> None:
    """Write into the last of a run's ``sessions`` what it used of the machine.

    Args:
        metadata: the run's ``metadata.json``.
        before: `resource_use` when the session began: a process may train several runs.
    """
    values = json.loads(metadata.read_text(encoding="utf-8"))
    now = resource_use()
    now["cpu_seconds"] = round(now["cpu_seconds"] - before["cpu_seconds"], 1)
    values["sessions"][-1]["resources"] = now
    write_json(metadata, values)


def _sessions(metadata: Path) -> list[dict[str, Any]]:
    """The earlier sessions of a run; none where a power cut or a full disk has emptied the file."""
    try:
        found: list[dict[str, Any]] = json.loads(metadata.read_text(encoding="utf-8"))["sessions"]
        return [entry for entry in found if isinstance(entry["frames"], int)]
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s cannot be read and is written anew, without the run's earlier sessions: %s", metadata, error)
        return []


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config; equal for equal settings, whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of every package that decides what a run does; None for one that is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code(git: Mapping[str, Any], changes: str) -> str:
    """The commit and the uncommitted changes in short: the beginnings of their hashes."""
    digest = hashlib.sha256(changes.encode()).hexdigest()
    return f"{git['commit'][:7]}{f' with changes {digest[:6]}' if git['dirty'] else ''}"


def _git() -> dict[str, Any] | None:
    """The commit of the code that the user ran in, or None outside a repository.

    A repository that came from elsewhere may name programs for git to run, and files outside of it: none is.
    """
    settings = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}

    def ask(*arguments: str) -> str:
        given = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_COUNT": str(given + len(settings))}
        # What a partial clone lacks would be fetched by the program that it names.
        environment |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
        for number, (key, value) in enumerate(settings.items(), given):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        done = subprocess.run(["git", *arguments], env=environment, capture_output=True, check=True, timeout=10)
        return done.stdout.decode(errors="replace")

    try:
        commit = ask("rev-parse", "HEAD").strip()
        listed = ask("config", "--list", "--show-scope", "--name-only", "-z").split("\0")
        for scope, name in zip(listed[::2], listed[1::2], strict=False):
            if scope not in ("local", "worktree"):
                continue
            if name == "core.worktree":
                return None
            if re.fullmatch(r"filter\..*\.(clean|process)", name, re.DOTALL):
                settings |= {name: "", f"{name.rpartition('.')[0]}.required": "false"}
        dirty = bool(ask("status", "--porcelain", "--ignore-submodules=dirty"))
        diff = ask("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "HEAD") if dirty else ""
        return {"commit": commit, "dirty": dirty, "diff": diff}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
