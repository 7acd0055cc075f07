"""Weights & Biases as a sink that can fail without the run noticing more than a warning."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import wandb

from rlexp.config import NO_RESULTS, flat, is_under
from rlexp.config.redaction import redact
from rlexp.loggers.sink import Row, Sink

if TYPE_CHECKING:
    from rlexp.loggers.config import WandbConfig

log = logging.getLogger(__name__)


def open_wandb(spec: WandbConfig, run_dir: Path, config: Mapping[str, Any], run_id: str) -> list[Sink]:
    """Start a W&B run; where W&B cannot, say so and go on without it."""
    if spec.mode == "disabled":
        return []
    try:
        return [WandbSink(_start(spec, run_dir, config, run_id, _mode(spec)))]
    except Exception as error:  # whatever W&B raises, training goes on
        if spec.mode == "offline":
            log.warning("W&B could not start, logging to metrics.jsonl alone: %s", error)
            return []
        log.warning("W&B could not go online (%s): logging offline.", error)
        return open_wandb(spec.model_copy(update={"mode": "offline"}), run_dir, config, run_id)


def _mode(spec: WandbConfig) -> Literal["online", "offline"]:
    if spec.mode == "auto":
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    return "online" if spec.mode == "online" else "offline"


def _start(
    spec: WandbConfig, run_dir: Path, config: Mapping[str, Any], run_id: str, mode: Literal["online", "offline"]
) -> wandb.Run:
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        # Asked on a terminal, W&B would wait for a key for ever.
        raise RuntimeError("no API key is configured; `wandb login` stores one")
    run = wandb.init(
        project=spec.project,
        entity=spec.entity,
        group=group_of(config) if spec.group == "auto" else redact(spec.group),
        job_type=redact(spec.job_type),
        tags=redact(list(spec.tags)),
        name=run_dir.name,
        id=run_id,
        # Offline, W&B checks no id and warns of this one: `wandb sync --append` joins the parts.
        resume="allow" if mode == "online" else None,
        dir=run_dir,
        config=dict(config),
        mode=mode,
        reinit="finish_previous",
        settings=wandb.Settings(
            init_timeout=spec.init_timeout,
            finish_timeout=spec.finish_timeout,
            finish_timeout_raises=True,
            console="off",
            silent=True,
            # W&B would store the command line, secrets included; the run's metadata.json keeps its own.
            x_disable_meta=True,
            # Rows reach the disk within a second, so that a killed run keeps them.
            x_transaction_log_flush_interval=1.0,
        ),
    )
    run.define_metric("frames")
    run.define_metric("*", step_metric="frames")
    return run


def group_of(config: Mapping[str, Any]) -> str:
    """The W&B group of a run: the same for all seeds of one configuration, so that W&B's averages are over seeds."""
    # Unsorted, unlike `config_hash`: the order of transforms is part of what they do.
    kept = json.dumps({key: value for key, value in flat(config) if not is_under(key, NO_RESULTS)})
    return f"{config['env']['name']}-{hashlib.sha256(kept.encode()).hexdigest()[:8]}"


class WandbSink(Sink):
    """One W&B run; the first failure ends the copy, never the training."""

    def __init__(self, run: wandb.Run) -> None:
        self._run: wandb.Run | None = run

    def log(self, row: Row) -> None:
        """Copy one row; ``frames`` is data like the rest, since W&B drops rows whose step it has passed."""
        if self._run is None:
            return
        try:
            self._run.log(dict(row))
        except Exception as error:
            self._fail(error)

    def log_video(self, path: Path, frames: int) -> None:
        """Copy a film into the row that comes next."""
        if self._run is None:
            return
        try:
            self._run.log({"eval/video": wandb.Video(str(path), format="mp4")}, commit=False)
        except Exception as error:
            self._fail(error)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish the W&B run and say where it is."""
        if self._run is None:
            return
        run = self._run
        try:
            run.summary.update({f"final/{key}": value for key, value in summary.items() if value is not None})
            run.finish(exit_code=0 if summary["status"] == "completed" else 1)
        except Exception as error:
            self._fail(error)
        else:
            offline = f"offline; upload with: wandb sync {Path(run.dir).parent}"
            log.info("W&B: %s", offline if run.offline else run.url)

    def _fail(self, error: Exception) -> None:
        log.warning("W&B failed and gets no more rows; metrics.jsonl has them all: %s", error)
        if self._run is not None:
            log.warning("What it took before is on disk; upload it with: wandb sync %s", Path(self._run.dir).parent)
        self._run = None
