"""The trainer: builds the parts from the config, owns their identity, and runs the loop."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlexp.agent.evaluation import Evaluation, evaluate, evaluation_seeds
from rlexp.agent.video import check_filming, filmed
from rlexp.callbacks import Callback
from rlexp.checks import check_checkpoint, check_env
from rlexp.collectors import Source
from rlexp.config import ConfigError, Problem, build_at, check_targets, load, new_run_path
from rlexp.config.redaction import redact
from rlexp.experiment import Experiment, read_config
from rlexp.hardware import pick_device, set_threads, share_out
from rlexp.learner import Learner
from rlexp.normalization import commit_normalization, copy_normalization, init_normalization, observation_norms
from rlexp.policies.recurrent import carry_state
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import Checkpoint
from rlexp.runs.resume import prepare
from rlexp.runs.rundir import RunDir
from rlexp.runs.session import Session
from rlexp.runs.stops import Stopped
from rlexp.seeding import seed_everything
from rlexp.state import get_state, load_state, warm_start

log = logging.getLogger(__name__)


class TrainingError(Exception):
    """Training cannot go on; the message says which number went wrong, and when."""


class Trainer:
    """Trains one agent as an experiment describes it, into one folder.

    Args:
        experiment: the checked config.
        run_dir: the run's folder; None makes a new one under ``outputs``.
        start: the run's checkpoint to go on from; None starts afresh.

    Raises:
        ConfigError: a part cannot be built with these settings, or the folder holds a run that would be spoilt.
        RunBusyError: another process trains in the folder.
    """

    def __init__(
        self, experiment: Experiment, run_dir: RunDir | Path | str | None = None, start: Checkpoint | None = None
    ) -> None:
        check_targets(experiment)
        self.experiment = experiment
        if run_dir is None:
            run_dir = new_run_path(experiment.env.name)
        self.run = run_dir if isinstance(run_dir, RunDir) else RunDir(Path(run_dir))
        if start is None and self.run.started:
            message = "holds a run already: continue it with resume=..., or choose another folder."
            raise ConfigError([Problem("hydra.run.dir", message, str(self.run.path))])
        if experiment.checks:
            check_env(experiment.env)
        if experiment.evaluation.video_interval is not None:
            check_filming(experiment.env, "evaluation.video_interval")
        self.device = pick_device(experiment.device)
        torch.set_num_threads(1)  # the first weights must not depend on how many cores this machine has
        seed_everything(experiment.seed)

        spec = share_out(experiment)
        self.env = spec.build(spec.num_envs)
        self.env.base_env.timeout = experiment.collector.timeout
        seed = experiment.seed if start is None else _seed_after(experiment.seed, start.state.iteration)
        self.env.set_seed(seed)
        init_normalization(self.env, spec.init_random_steps)
        self.eval_env = spec.build(experiment.evaluation.episodes)
        self.eval_env.base_env.timeout = experiment.collector.timeout
        self.networks = experiment.policy.build(self.env, self.device)
        for env in (self.env, self.eval_env):
            carry_state(env, self.networks.actor)
        self.learner = Learner(experiment, self.networks, self.device)
        self.threads = set_threads(experiment, self.learner.weights.numel())
        source = Source(spec, experiment.policy, seed)
        self.collector = experiment.collector.build(self.env, self.networks.actor, source, self.device)

        self.callbacks: dict[str, Callback] = {
            name: build_at(f"callbacks.{name}", node.build) for name, node in experiment.callbacks.items()
        }
        self.frames = 0
        self.iteration = 0
        self.final: Evaluation | None = None
        self.best: Evaluation | None = None
        self.best_frames: int | None = None
        self.saved: Path | None = None
        self.saved_at = time.monotonic()
        self.seconds = {"collect": 0.0, "update": 0.0, "eval": 0.0}
        # The agent of a W&B sweep has named its run already; W&B would log under no other id.
        named = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        self.run_id = named or secrets.token_hex(4)
        if start is not None:
            load_state(self, start.state)
        elif experiment.warm_start is not None:
            warm_start(self, Path(experiment.warm_start))
        self.run.lock()
        if start is not None:
            self.saved = self.run.checkpoints / start.path.name
            checkpoint.go_on_from(self.saved, self.best_frames)

    @classmethod
    def from_config(cls, config: Experiment | Mapping[str, Any], run_dir: Path | str | None = None) -> Trainer:
        """Build a trainer from a checked config, or from plain values, which are checked here.

        Raises:
            ConfigError: with everything that is wrong with the config.
        """
        return cls(config if isinstance(config, Experiment) else read_config(dict(config)), run_dir)

    @classmethod
    def resume(cls, path: Path | str, overrides: Sequence[str] = ()) -> Trainer:
        """A trainer that goes on with a run, as ``rlexp-train resume=PATH`` does.

        Args:
            path: the run's folder, or one of its checkpoints.
            overrides: what changes, e.g. ``["total_frames=500_000"]``.

        Raises:
            ConfigError: a change would make another run of it.
            CheckpointError: there is no checkpoint that is whole.
            RunBusyError: another process trains in the folder.
        """
        composed = load(overrides)
        composed.values["resume"] = str(path)
        start = prepare(composed, overrides)
        return cls(start.experiment, start.run, start.checkpoint)

    def fit(self) -> dict[str, Any]:
        """Train until the budget is spent or a signal asks to stop.

        Returns:
            What ``summary.json`` holds: status, frames, seconds, final and best evaluation.

        Raises:
            TrainingError: an observation, reward, loss or gradient is not finite.
            CheckError: ``checks`` is on, and the checkpoint does not hold the agent.
            Stopped: a signal came; the run is saved.
        """
        info = {"seed": self.experiment.seed, "threads": self.threads, "device": str(self.device)}
        with (
            closing(self),
            torch.autograd.set_detect_anomaly(self.experiment.checks),
            Session(self.run, self.experiment, info, self.frames, self.run_id) as session,
        ):
            batches = iter(self.collector)
            self.save()
            while not self.finished and session.stop is None:
                metrics = self.iterate(batches)
                if self.finished or self._due(self.experiment.evaluation.interval):
                    metrics |= self.evaluate().metrics()
                if self._film_due() and (video := self.film()) is not None:
                    session.log_video(video, self.frames)
                session.log({"frames": self.frames} | metrics | self.time_metrics())
                if self.best_frames == self.frames or self._save_due():
                    session.sync()
                    self.save()
            session.sync()
            path = self.save()
            if self.experiment.checks and self.final is not None and self.finished:
                check_checkpoint(path, self.final, self.device, self.experiment.to_dict())
            session.summary = self.summary("completed" if self.finished else _status(session.stop))
        if session.stop is not None and not self.finished:
            raise Stopped(session.stop)
        return session.summary

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.frames >= self.experiment.total_frames

    def iterate(self, batches: Iterator[TensorDictBase]) -> dict[str, float]:
        """One iteration of training: collect a batch, learn from it.

        Returns:
            The metrics of it, the evaluation's and the clock's left out.

        Raises:
            TrainingError: an observation, reward, loss or gradient is not finite.
        """
        batch = self.collect(batches)
        self._call("after_collect", batch)
        metrics = self.train_metrics(batch) | self.update(batch)
        self.learner.scheduler.step()
        commit_normalization(self.env)
        self._check_statistics()
        self._call("after_update", metrics)
        return metrics | {"train/parameters_hash": parameters_hash(self.learner.weights)}

    def collect(self, batches: Iterator[TensorDictBase]) -> TensorDictBase:
        """One batch of transitions ``[num_envs, steps]`` from the current policy."""
        with self._timed("collect"):
            batch = next(batches)
        self.frames += batch.numel() * self.experiment.env.frame_skip
        self.iteration += 1
        self._check_batch(batch)
        return batch

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Improve the policy on one batch ``[num_envs, steps]``: `Learner.update`, timed and checked.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        with self._timed("update"):
            metrics = self.learner.update(batch, (self.iteration - 1) / self.experiment.num_batches)
        return self._checked(metrics)

    def evaluate(self) -> Evaluation:
        """Evaluate the current policy, and remember the best so far."""
        with self._timed("eval"):
            copy_normalization(self.env, self.eval_env)
            seeds = evaluation_seeds(self.experiment.seed, self.experiment.evaluation.episodes)
            self.final = evaluate(self.eval_env, self.networks.actor, seeds)
        log.info(
            "%s frames: evaluation return %.1f (%d episodes of %.0f steps on average)",
            f"{self.frames:,}", self.final.mean_return, len(seeds), sum(self.final.lengths) / len(seeds),
        )  # fmt: skip
        if self.best is None or self.final.mean_return > self.best.mean_return:
            self.best, self.best_frames = self.final, self.frames
        self._call("after_evaluation", self.final)
        return self.final

    def film(self) -> Path | None:
        """Film the first episode of an evaluation of the current policy.

        Returns:
            The MP4; None where it could not be made, which is announced.
        """
        seed = self.experiment.seed
        path = self.run.videos / f"{self.frames:012d}_seed{seed}.mp4"
        with self._timed("eval"):
            try:
                with filmed(self.experiment.env, path) as env:
                    copy_normalization(self.env, env)
                    carry_state(env, self.networks.actor)
                    evaluate(env, self.networks.actor, evaluation_seeds(seed, 1))
            except Exception as error:  # whatever a renderer or an encoder raises, training goes on
                log.warning("No video after %s frames: %s", f"{self.frames:,}", error)
                return None
        return path

    def save(self) -> Path:
        """Save a checkpoint of this moment, once; it is the best one if the best evaluation is of this moment."""
        path = self.run.checkpoints / f"{self.frames:012d}"
        if self.saved != path:
            config, keep = redact(self.experiment.to_dict()), self.experiment.checkpoint.keep_last
            best = self.best_frames == self.frames
            self.saved = checkpoint.save(self.run.checkpoints, get_state(self), config, keep, best=best)
            self.saved_at = time.monotonic()
            self._call("at_checkpoint", path)
        return path

    def train_metrics(self, batch: TensorDictBase) -> dict[str, float]:
        """The ``train/*`` entries of a metrics row."""
        after = batch["next"]
        metrics = {
            "train/reward": after["reward"].mean().item(),
            "train/step_count": after["step_count"].max().item(),
            "train/lr": self.learner.scheduler.get_last_lr()[0],
        }
        if (done := after["done"]).any():
            metrics["train/episode_return"] = after["episode_reward"][done].mean().item()
            metrics["train/episode_length"] = after["step_count"][done].double().mean().item()
        return self._checked(metrics)

    def time_metrics(self) -> dict[str, float]:
        """The ``time/*`` entries of a metrics row."""
        training = self.seconds["collect"] + self.seconds["update"]
        return {"time/fps": self.frames / training} | {f"time/{k}": v for k, v in self.seconds.items()}

    def summary(self, status: str) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return {
            "status": status,
            "frames": self.frames,
            "seconds": sum(self.seconds.values()),
            "final": None if self.final is None else self.final.metrics(),
            "best": None if self.best is None else self.best.metrics(),
            "checkpoint": None if self.saved is None else str(self.saved),
        }

    def _call(self, point: str, *arguments: object) -> None:
        """Run every callback's method for a point of the loop."""
        for callback in self.callbacks.values():
            getattr(callback, point)(self, *arguments)

    def _due(self, interval: int | None) -> bool:
        """Whether this batch passed a multiple of ``interval`` frames."""
        if interval is None:
            return False
        before = self.frames - self.experiment.collector.frames_per_batch
        return self.frames // interval > before // interval

    def _film_due(self) -> bool:
        interval = self.experiment.evaluation.video_interval
        return interval is not None and (self.finished or self._due(interval))

    def _save_due(self) -> bool:
        minutes = self.experiment.checkpoint.interval_minutes
        by_clock = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        return by_clock or self._due(self.experiment.checkpoint.interval)

    def _check_batch(self, batch: TensorDictBase) -> None:
        for key, value in batch.items(include_nested=True, leaves_only=True):
            if value.is_floating_point() and not value.isfinite().all():
                name = key if isinstance(key, str) else ".".join(key)
                raise TrainingError(f"{name} is not finite (NaN or infinity) at {self.frames:,} frames.")

    def _check_statistics(self) -> None:
        """Clipping hides an infinite observation; the statistics that it went into do not."""
        for norm in observation_norms(self.env):
            if not (norm.loc.isfinite().all() and norm.scale.isfinite().all()):
                raise TrainingError(f"observation is not finite (NaN or infinity) at {self.frames:,} frames.")

    def _checked(self, metrics: dict[str, float]) -> dict[str, float]:
        for name, value in metrics.items():
            if value - value != 0:
                raise TrainingError(f"{name} is {value} at {self.frames:,} frames.")
        return metrics

    def close(self) -> None:
        """Close the simulators and the collector, and let other processes into the run's folder."""
        self.collector.shutdown()
        self.eval_env.close(raise_if_closed=False)  # torchrl's open when first used
        self.run.unlock()

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start


def parameters_hash(weights: Tensor) -> int:
    """The first 48 bits of the weights' SHA-256: a number that a metrics row holds exactly."""
    digest = hashlib.sha256(weights.detach().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:6])


def _seed_after(seed: int, iteration: int) -> int:
    """Seeds episodes that begin afresh after a resume, so that they are not the run's first ones again."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])


def _status(stop: signal.Signals | None) -> str:
    return "requeue" if stop is signal.SIGUSR1 else "stopped"
