"""Settings of the loggers: the sinks that get a copy of ``metrics.jsonl``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlexp.config import TARGET, Config, Positive, Problem
from rlexp.loggers.sink import Sink

# What WANDB_MODE may be; dryrun and run are W&B's older names.
_MODES: Mapping[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
}
_NOT_IN_A_PROJECT = set("/\\#?%:")
_LONGEST_PROJECT = 128
# W&B limits a registry, its prefix included, and a collection to 128 characters.
_COLLECTION = re.compile(r"(?:[^/:]+/)?(?=[^/]{1,128}/)wandb-registry-[^/\\#?%:\s][^/\\#?%:\r\n]*/[^/:\s][^/:]{0,127}")


class LoggerConfig(Config):
    """Base of all logger options."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """Start the sinks of a run, or continue them.

        Args:
            run_dir: the run's folder.
            config: the resolved config, secrets left out.
            run_id: the same each time that the run is resumed, and no other run's.
            frames: where training starts. Rows beyond, which a killed process logged, will be logged again.
        """
        raise NotImplementedError


class NoLoggerConfig(LoggerConfig):
    """The run's own files and nothing else."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """No sinks."""
        return []


class SeveralConfig(LoggerConfig):
    """Several loggers at once.

    Attributes:
        sinks: the loggers; names are free.
    """

    sinks: dict[str, LoggerConfig]

    def missing_requirements(self) -> Iterator[Problem]:
        """What any of them is missing."""
        for name, logger in self.sinks.items():
            yield from (problem.under(f"sinks.{name}.") for problem in logger.missing_requirements())

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """The sinks of all of them."""
        return [sink for logger in self.sinks.values() for sink in logger.open(run_dir, config, run_id, frames)]


class CsvConfig(LoggerConfig):
    """``metrics.csv`` in the run's folder: the rows of ``metrics.jsonl``, one column per metric."""

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """The table, with the run's rows so far."""
        from rlexp.loggers.local import CsvFile

        return [CsvFile(run_dir)]


class TensorBoardConfig(LoggerConfig):
    """TensorBoard events in the folder ``tensorboard`` of the run; steps are frames."""

    def missing_requirements(self) -> Iterator[Problem]:
        """The package tensorboard."""
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            message = "needs the package tensorboard: pip install 'rlexp[tensorboard]'."
            yield Problem(TARGET, message, "rlexp.loggers.TensorBoardConfig")

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """An event file; TensorBoard hides what earlier ones hold beyond ``frames``."""
        from rlexp.loggers.tensorboard import TensorBoardSink

        return [TensorBoardSink(run_dir / "tensorboard", config, frames)]


class WandbConfig(LoggerConfig):
    """Weights & Biases, as a copy of ``metrics.jsonl``.

    Attributes:
        mode: ``auto`` is what ``WANDB_MODE`` says, else online where an API key is configured and offline otherwise;
            nothing ever prompts.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: W&B group of the run; ``auto`` is the same for all seeds of one configuration, and no other's.
        job_type: W&B job type.
        tags: W&B tags; those of ``WANDB_TAGS`` are added. Longer ones than W&B takes are shortened.
        init_timeout: seconds to wait for the server before logging offline.
        finish_timeout: seconds to wait at the end for the last rows to be uploaded.
        artifacts: checkpoints that become versions of an artifact: ``none``, each ``best`` one, or ``all``.
        registry: ``wandb-registry-REGISTRY/COLLECTION`` to which the best checkpoint is linked when the run is
            complete, with ``ORGANIZATION/`` before it where the account has several; None links nothing.
        alerts: whether W&B sends an alert when the run fails.
    """

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: Sequence[str]
    init_timeout: Positive
    finish_timeout: Positive
    artifacts: Literal["none", "best", "all"]
    registry: str | None
    alerts: bool

    def missing_requirements(self) -> Iterator[Problem]:
        """Names and modes that W&B takes."""
        variable = os.environ.get("WANDB_MODE")
        if self.mode == "auto" and variable and variable not in _MODES:
            yield Problem("mode", f"WANDB_MODE must be one of {', '.join(_MODES)}.", variable)
        entity, slash, project = self.project.rpartition("/")
        if slash and entity and project and not set(entity + project) & _NOT_IN_A_PROJECT:
            message = f"has an entity in it: logger.entity={entity} logger.project={project}."
            yield Problem("project", message, self.project)
        elif wrong := sorted(set(self.project) & _NOT_IN_A_PROJECT):
            yield Problem("project", f"cannot be a W&B project: it has {' '.join(wrong)} in it.", self.project)
        elif not 1 <= len(self.project) <= _LONGEST_PROJECT:
            message = f"must have from 1 to {_LONGEST_PROJECT} characters to be a W&B project."
            yield Problem("project", message, self.project)
        if any(not tag.strip() for tag in self.tags):
            yield Problem("tags", "has an empty tag, which W&B does not take.", str(list(self.tags)))
        if self.registry is not None:
            if not _COLLECTION.fullmatch(self.registry):
                message = "must be wandb-registry-REGISTRY/COLLECTION, such as wandb-registry-model/hopper."
                yield Problem("registry", message, self.registry)
            if self.artifacts == "none":
                yield Problem("registry", "links an artifact: it needs logger.artifacts=best or all.", self.registry)
            if self.mode == "offline":
                yield Problem("registry", "needs W&B's server, and logger.mode is offline.", self.registry)

    def open(self, run_dir: Path, config: Mapping[str, Any], run_id: str, frames: int) -> list[Sink]:
        """One W&B run, inside the run's folder or in ``WANDB_DIR``."""
        variable = os.environ.get("WANDB_MODE")
        mode = _MODES[variable] if self.mode == "auto" and variable else self.mode
        if mode == "disabled":
            return []

        from rlexp.loggers.local import read_metrics
        from rlexp.loggers.wandb import open_wandb

        folder = Path(os.environ.get("WANDB_DIR") or run_dir)
        if "WANDB_SWEEP_ID" in os.environ and folder.resolve() == Path.cwd():
            folder = run_dir  # the agent of a W&B sweep sets WANDB_DIR to the working directory, unasked
        added = (tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(","))
        arguments = {
            "project": self.project,
            "entity": self.entity or None,
            "group": self.group or None,
            "job_type": self.job_type,
            "tags": [*self.tags, *filter(None, added)],
            "name": os.environ.get("WANDB_NAME") or run_dir.name,
            "id": run_id,
        }
        return open_wandb(
            mode,
            folder,
            config,
            arguments,
            self.init_timeout,
            self.finish_timeout,
            self.artifacts,
            self.registry,
            alerts=self.alerts,
            rows=read_metrics(run_dir) if frames else [],
        )
