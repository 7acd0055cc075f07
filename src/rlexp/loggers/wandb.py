"""Weights & Biases as a sink; where it fails, the run goes on with a warning."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import wandb

from rlexp.config import NO_RESULTS, flat, is_under
from rlexp.config.redaction import redact
from rlexp.loggers.sink import Row, Sink
from rlexp.loggers.wandb_artifact import checkpoint_artifact, link_best
from rlexp.loggers.wandb_log import logged_rows
from rlexp.loggers.wandb_login import logged_in

log = logging.getLogger(__name__)

_LONGEST_TAG = 64
_LONGEST_GROUP = 128

Key = tuple[float, float | None]


def open_wandb(
    mode: Literal["auto", "online", "offline"],
    folder: Path,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    init_timeout: float,
    finish_timeout: float,
    artifacts: Literal["none", "best", "all"],
    registry: str | None,
    *,
    alerts: bool,
    rows: Sequence[Row],
) -> list[Sink]:
    """Start a W&B run; where W&B cannot, warn and train without it.

    Args:
        mode: ``auto`` is online where an API key is configured and offline otherwise.
        folder: holds W&B's folder ``wandb``.
        config: the resolved config, secrets left out.
        arguments: of ``wandb.init``: project, entity, group, job_type, tags, name, id.
        init_timeout: seconds to wait for the server.
        finish_timeout: seconds to wait at the end for the last rows to be uploaded.
        artifacts: checkpoints that become versions of an artifact.
        registry: collection to which the best of them is linked when the run is complete.
        alerts: whether a run that fails sends an alert.
        rows: what the run has logged so far; W&B gets those that it lacks.
    """
    # W&B's reports about itself, which a server that does not answer lets every process wait for at its end.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    settings = wandb.Settings(
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
        console="off",
        silent=True,
        # W&B would store the command line, secrets included; the run's metadata.json keeps its own.
        x_disable_meta=True,
        # Rows reach the disk within a second, so that a killed run keeps them.
        x_transaction_log_flush_interval=1.0,
    )
    modes = ["offline"] if mode == "offline" else ["online", "offline"]
    if mode == "auto" and not logged_in():
        modes = ["offline"]
    for each in modes:
        try:
            earlier = _earlier(folder, arguments["id"], rows)
            run = _start(each, folder, config, arguments, settings)
            elsewhere = 0.0
            if each == "online":  # what an earlier process logged on this machine may not have reached the server
                received = run.summary.get("frames") or 0
                elsewhere = min([received, *(frames - 1 for frames, _ in earlier)])
                earlier = {key for key in earlier if key[0] <= received}
        except Exception as error:  # whatever W&B raises, training goes on
            # W&B's service keeps the id of a run that failed, and takes it a second time only when started anew, which
            # would end the other runs of this process.
            if each == "online" and wandb.setup().most_recent_active_run is None:
                log.warning("W&B could not go online (%s): logging offline.", error)
                wandb.teardown()
            else:
                log.warning("W&B could not start, logging to metrics.jsonl alone: %s", error)
                break
        else:
            sink = WandbSink(run, earlier, elsewhere, artifacts, registry, finish_timeout, alerts=alerts)
            for row in rows:
                sink.log(row)
            return [sink]
    return []


def _start(
    mode: str, folder: Path, config: Mapping[str, Any], arguments: Mapping[str, Any], settings: wandb.Settings
) -> wandb.Run:
    if mode == "online" and not logged_in():
        raise RuntimeError("no API key is configured; `wandb login` stores one")
    folder.mkdir(parents=True, exist_ok=True)
    group = group_of(config) if arguments["group"] == "auto" else redact(arguments["group"])
    run = wandb.init(
        project=arguments["project"],
        entity=arguments["entity"],
        group=group and _shortened(group, _LONGEST_GROUP),
        job_type=redact(arguments["job_type"]),
        tags=_tags(redact(arguments["tags"])),
        name=arguments["name"],
        id=arguments["id"],
        resume="allow" if mode == "online" else None,  # offline, W&B warns of it
        dir=folder,
        config=dict(config),
        mode="online" if mode == "online" else "offline",
        reinit="create_new",  # a run of the program's own, or of another trainer, goes on
        settings=settings,
    )
    run.define_metric("frames")
    run.define_metric("*", step_metric="frames")
    return run


def _earlier(folder: Path, run_id: str, rows: Sequence[Row]) -> set[Key]:
    """The rows that W&B has from earlier processes of a run."""
    try:
        return {_key(row) for row in logged_rows(folder, run_id)}
    except Exception as error:  # a damaged log, or another format
        message = "W&B's log of the run so far cannot be read; it is taken to hold the %d rows of metrics.jsonl: %s"
        log.warning(message, len(rows), error)
        return {_key(row) for row in rows}


def _tags(tags: Sequence[str]) -> list[str]:
    """Tags as W&B takes them, each once."""
    return list(dict.fromkeys(_shortened(tag, _LONGEST_TAG) for tag in tags))


def _shortened(text: str, longest: int) -> str:
    """The text, or its beginning and its end where it is too long."""
    half = (longest - 2) // 2
    return text if len(text) <= longest else f"{text[:half]}..{text[-half:]}"


def _key(row: Mapping[str, Any]) -> Key:
    """What identifies a row: the frames, and the weights after the update."""
    return row.get("frames", 0), row.get("train/parameters_hash")


def group_of(config: Mapping[str, Any]) -> str:
    """The W&B group of a run: the same for all seeds of one configuration, so that W&B's averages are over seeds."""
    # Unsorted, unlike `config_hash`: the order of transforms is part of what they do.
    kept = json.dumps({key: value for key, value in flat(config) if not is_under(key, NO_RESULTS)})
    return f"{config['env']['name']}-{hashlib.sha256(kept.encode()).hexdigest()[:8]}"


class WandbSink(Sink):
    """One W&B run; the first failure ends the copy, never the training.

    Args:
        run: the W&B run.
        earlier: the rows that it has from earlier processes of this run; they are not sent again.
        elsewhere: frames up to which it has the rows of a process on another machine, whose log is not here; these
            are not sent again either.
        artifacts: checkpoints that become versions of the run's artifact.
        registry: collection to which the best of them is linked when the run is complete.
        finish_timeout: seconds to wait for its upload.
        alerts: whether a run that fails sends an alert.
    """

    def __init__(
        self,
        run: wandb.Run,
        earlier: Set[Key],
        elsewhere: float,
        artifacts: Literal["none", "best", "all"],
        registry: str | None,
        finish_timeout: float,
        *,
        alerts: bool,
    ) -> None:
        self._run: wandb.Run | None = run
        self._earlier = earlier
        self._elsewhere = elsewhere
        self._artifacts = artifacts
        self._registry = registry
        self._finish_timeout = finish_timeout
        self._best: wandb.Artifact | None = None
        self._alerts = alerts
        self._frames = {frames for frames, _ in earlier}

    def log(self, row: Row) -> None:
        """Copy one row; ``frames`` is data like the rest, since W&B drops rows whose step it has passed."""
        if self._run is None:
            return
        whole = "train/parameters_hash" in row  # and not more metrics of the row before
        if whole and (_key(row) in self._earlier or row["frames"] <= self._elsewhere):
            return
        if whole and row["frames"] in self._frames:
            message = "W&B keeps the rows from %s frames on that were logged before, and gets the new ones as well."
            log.warning(message, f"{row['frames']:,}")
            self._frames = set()
        try:
            self._run.log(dict(row))
        except Exception as error:
            self._fail(error)

    def log_video(self, path: Path, frames: int) -> None:
        """Add a video to the row that comes next."""
        if self._run is None or frames <= self._elsewhere or frames in {frames for frames, _ in self._earlier}:
            return
        try:
            self._run.log({"eval/video": wandb.Video(str(path), format="mp4")}, commit=False)
        except Exception as error:
            log.warning("W&B did not take the video %s: %s", path.name, error)

    def log_checkpoint(self, path: Path, *, best: bool) -> None:
        """Make a checkpoint a version of the run's artifact; where W&B does not take it, rows are logged on."""
        if self._run is None or self._artifacts == "none" or (self._artifacts == "best" and not best):
            return
        try:
            artifact = checkpoint_artifact(path, self._run.id)
            self._run.log_artifact(artifact, aliases=["latest", *(["best"] if best else [])])
            self._best = artifact if best else self._best
        except Exception as error:
            log.warning("W&B did not take the checkpoint %s: %s", path.name, error)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish the W&B run and log where it is."""
        if self._run is None:
            return
        run = self._run
        try:
            if self._alerts and summary["status"] == "failed":
                run.alert(title=f"{run.name} failed", text=str(summary.get("error", "")), level=wandb.AlertLevel.ERROR)
            run.summary.update({f"final/{key}": value for key, value in summary.items() if value is not None})
            if self._registry and summary["status"] == "completed":
                self._link(run, self._registry)
            run.finish(exit_code=0 if summary["status"] == "completed" else 1)
        except Exception as error:
            self._fail(error)
        else:
            offline = f"offline; upload with: wandb sync {Path(run.dir).parent}"
            log.info("W&B: %s", offline if run.offline else run.url)

    def _link(self, run: wandb.Run, collection: str) -> None:
        """Link the best checkpoint to a collection; where W&B does not, the run still ends as it should."""
        try:
            if run.offline:
                raise RuntimeError("it logged offline; link the artifact on its page after wandb sync")
            if self._best is not None:
                self._best.wait(timeout=max(1, round(self._finish_timeout)))
            link_best(run, collection)
        except Exception as error:
            log.warning("W&B did not link the best checkpoint to %s: %s", collection, error)
        else:
            log.info("W&B: the best checkpoint is linked to %s", collection)

    def _fail(self, error: Exception) -> None:
        log.warning("W&B failed and gets no more rows; metrics.jsonl has them all: %s", error)
        if self._run is not None:
            log.warning("The rows before are on disk; upload them with: wandb sync %s", Path(self._run.dir).parent)
        self._run = None
