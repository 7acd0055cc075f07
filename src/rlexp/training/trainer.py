"""The trainer: collect, update, evaluate, log, save."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlexp.agent.evaluation import EvaluationError
from rlexp.config import ConfigError, Problem, check_targets, new_run_path
from rlexp.config.redaction import redact, remember_secrets
from rlexp.distributed import ALONE, Group
from rlexp.envs.gymnasium.lives import end_lives
from rlexp.envs.normalization import commit_normalization
from rlexp.errors import RlexpError
from rlexp.experiment import ExperimentConfig, read_config
from rlexp.files import write_json
from rlexp.floats import float32_by_default
from rlexp.runs import checkpoint, store
from rlexp.runs.checkpoint import Checkpoint
from rlexp.runs.resume import resume_run
from rlexp.runs.rundir import RunDir
from rlexp.runs.session import Follower, LogBuffer, Session
from rlexp.runs.stops import Stopped
from rlexp.seeding import load_rng_state, rng_state
from rlexp.training.checks import check_checkpoint, check_learners
from rlexp.training.evaluator import passed
from rlexp.training.finite import TrainingError, check_additions, check_batch, check_metrics, check_statistics
from rlexp.training.parts import build_parts
from rlexp.training.state import restore, state_of, warm_start
from rlexp.training.watchdog import Watchdog

P = ParamSpec("P")
T = TypeVar("T")

# Random generators, torch's number of threads and its default type are the whole process's: one trainer at a time has
# them. Reentrant, since callbacks call methods of their trainer.
_PROCESS = threading.RLock()


@contextmanager
def _turn() -> Iterator[None]:
    with _PROCESS, float32_by_default():
        yield


class TrainerEndedError(RlexpError):
    """A trainer was closed, or interrupted in the middle of a batch, and cannot go on; the message says what can."""


def _step(method: Callable[Concatenate[Trainer, P], T]) -> Callable[Concatenate[Trainer, P], T]:
    """A part of an iteration: it has the trainer's own generators and threads, and one that raises ends the trainer."""

    @wraps(method)
    def step(self: Trainer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with _turn():
            self._check_open()
            torch.set_num_threads(self.threads)
            load_rng_state(self.rng)
            try:
                found = method(self, *args, **kwargs)
            except BaseException:
                self._ended = "was interrupted in the middle of a batch"
                raise
            self.rng = rng_state()
            return found

    return step


class Trainer:
    """Trains one agent as an experiment describes it, into one folder.

    One iteration collects a batch with the current policy, improves the policy on it, evaluates when that is due, logs
    one row and saves when that is due. `fit` runs iterations until the budget is spent; ``for metrics in trainer`` runs
    them one at a time, without a run's log, plots and summary.

    Args:
        config: the checked config.
        run_dir: the run's folder; None makes a new one under ``outputs``.
        start: the checkpoint in it to resume from; None starts afresh.
        group: the learners that train it together; each is a trainer in a process of its own, and the first of them
            alone writes to the folder.

    Attributes:
        env: the training environment, with its transforms.
        networks: actor and critic.
        collector: yields batches ``[num_envs, steps]``.
        learner: improves the networks on a batch.
        evaluator: evaluates the policy.
        frames: simulator frames collected.
        iteration: batches trained on.
        rng: states of the random generators; what others draw between two steps of this trainer does not change it.

    Raises:
        ConfigError: a part cannot be built with these settings, or the folder holds a run that would be spoilt.
        RunBusyError: another process trains in the folder.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: RunDir | Path | str | None = None,
        start: Checkpoint | None = None,
        group: Group = ALONE,
    ) -> None:
        check_targets(config)
        remember_secrets(config.to_dict())
        self.config, self.group = config, group
        if run_dir is None:
            run_dir = new_run_path(config.env.name)
        self.run = run_dir if isinstance(run_dir, RunDir) else RunDir(Path(run_dir))
        self._watched: list[object] = []
        watchdog = Watchdog(config.collector.timeout, self._watched)
        # A constructor that fails leaves no lock and no process.
        with LogBuffer() as logged, ExitStack() as on_failure, watchdog, group.reporting(), _turn():
            if group.main:
                self.run.lock()
                on_failure.callback(self.run.discard)
            check_learners(config, start, group)
            if start is None and group.main and self.run.started:
                message = "holds a run already: continue it with resume=..., or choose another folder."
                raise ConfigError([Problem("hydra.run.dir", message, str(self.run.path))])
            source, other = start, config.warm_start
            if source is None and other is not None:
                source = group.from_main(lambda: checkpoint.load(Path(other)))
            statistics = None if source is None else source.state.transforms
            iteration = None if start is None else start.state.iteration
            parts = build_parts(config, iteration, self._watched, on_failure, group, statistics)
            self.device, self.threads = parts.device, parts.threads
            self.env, self.networks, self.collector = parts.env, parts.networks, parts.collector
            self.learner, self.evaluator, self.callbacks = parts.learner, parts.evaluator, parts.callbacks
            self._batches: Iterator[TensorDictBase] = iter(self.collector)
            self.frames = 0
            self.iteration = 0
            self.saved: Path | None = None
            self.saved_at = time.monotonic()
            self.seconds = {"collect": 0.0, "update": 0.0, "eval": 0.0}
            self._stop = False
            self._failure: TrainingError | None = None
            self._ended = ""
            # The agent of a W&B sweep has named its run already; W&B would log under no other id.
            named = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
            self.run_id = named or secrets.token_hex(4)
            if start is not None:
                restore(self, start)
            elif source is not None:
                warm_start(self, source)
            self.rng = rng_state()
            if self.saved is not None:  # what callbacks change there is not in it
                self._call("at_checkpoint", self.saved)
            self._closing = on_failure.pop_all()
        self._logged = logged.records

    @classmethod
    def from_config(cls, config: ExperimentConfig | Mapping[str, Any], run_dir: Path | str | None = None) -> Trainer:
        """Build a trainer from a checked config, or from plain values, which are checked here.

        Raises:
            ConfigError: with everything that is wrong with the config.
        """
        return cls(config if isinstance(config, ExperimentConfig) else read_config(dict(config)), run_dir)

    @classmethod
    def resume(cls, path: Path | str, overrides: Sequence[str] = ()) -> Trainer:
        """A trainer that continues a run, as ``rlexp-train resume=PATH`` does.

        Args:
            path: the run's folder, or one of its checkpoints.
            overrides: what changes, e.g. ``["total_frames=500_000"]``.

        Raises:
            ConfigError: a change would make another run of it.
            CheckpointError: there is no checkpoint that is whole.
            RunBusyError: another process trains in the folder.
        """
        start = resume_run(Path(path), overrides)
        return cls(start.config, start.run, start.checkpoint)

    def fit(self) -> dict[str, Any]:
        """Train until the budget is spent, `stop` is called or a signal asks to stop.

        Returns:
            What ``summary.json`` holds: status, frames, seconds, final and best evaluation.

        Raises:
            TrainingError: an observation, reward, loss or gradient is not finite, or an evaluation episode never ends.
            SimulatorError, WorkerError, GroupError: a simulator, a worker or another learner has failed.
            CheckError: ``checks`` is on, and the checkpoint does not hold the agent.
            TrainerEndedError: it has ended before, and the budget is not spent.
            Stopped: a signal came; the run is saved.
        """
        if self._ended and self.finished:
            return self.summary("completed")
        self._check_open()
        with (
            closing(self),
            torch.autograd.set_detect_anomaly(self.config.checks),
            self._session() as session,
            Watchdog(self.config.collector.timeout, self._watched, self._give_up),
            self.group.reporting(),
        ):
            stop: signal.Signals | None = None
            self.save()
            if self.finished and self.evaluator.final_frames != self.frames:
                found = self.evaluate()
                self._raise_failure()
                session.amend({"frames": self.frames} | found)
            while not (self.finished or self._stop or (stop := self._asked_to_stop(session))):
                metrics = self.iterate()
                if (video := self.record_video()) is not None:
                    session.log_video(video, self.frames)
                session.log({"frames": self.frames} | metrics | self.time_metrics())
                if self.save_due() or self._failure is not None:
                    session.sync()
                    session.log_checkpoint(self.save())
                self._raise_failure()
            session.sync()
            path = self.save()
            session.log_checkpoint(path)
            if self.config.checks and self.evaluator.final is not None and self.finished:
                with _turn():
                    check_checkpoint(path, self.evaluator.final, self.device, self.config)
            session.summary = self.summary("completed" if self.finished else _status(stop))
        if stop is not None and not self.finished:
            raise Stopped(stop)
        return session.summary

    def iterate(self) -> dict[str, float]:
        """One iteration: collect a batch, improve the policy on it, evaluate it when that is due.

        Returns:
            The metrics of a row, the clock's left out.

        Raises:
            TrainingError: an observation, reward, loss or gradient is not finite, or the evaluation before failed.
        """
        self._raise_failure()
        batch = self.collect()
        metrics = self.batch_metrics(batch)
        metrics |= self.update(batch)
        metrics |= self.evaluate()
        return metrics

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Iterations, one at a time, until the budget is spent or `stop` is called."""
        while not (self.finished or self._stop):
            yield self.iterate()
        self._raise_failure()

    @_step
    def collect(self) -> TensorDictBase:
        """One batch of transitions ``[num_envs, steps]`` from the current policy."""
        with self._timed("collect"):
            batch = next(self._batches)
        self.frames += self.group.size * batch.numel() * self.config.env.frame_skip
        self.iteration += 1
        check_batch(batch, self.frames)
        self._call("after_collect", batch)
        return batch

    @_step
    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Improve the policy on one batch ``[num_envs, steps]``, and let the statistics take it in.

        Raises:
            TrainingError: a loss, gradient or statistic is not finite.
        """
        with self._timed("update"):
            end_lives(batch)
            metrics = self.learner.update(batch, (self.iteration - 1) / self.config.num_batches)
        check_metrics(metrics, self.frames)
        commit_normalization(self.env, self.group)
        check_statistics(self.env, self.frames)
        for name, callback in self.callbacks.items():
            own = dict(metrics)
            callback.after_update(self, metrics)
            check_additions(f"callbacks.{name}", own, metrics, self.frames)
        self.evaluator.follow()
        digest = fingerprint(self.learner.weights)
        self.group.check_equal(f"At {self.frames:,} frames the weights", digest)
        # Each learner takes its share of minibatches that all draw alike.
        self.group.check_equal(f"At {self.frames:,} frames torch's generators", fingerprint(torch.get_rng_state()))
        return metrics | {"train/parameters_hash": digest}

    @_step
    def evaluate(self) -> dict[str, float]:
        """Evaluate the policy if that is due after this batch; the ``eval/*`` entries of a metrics row."""
        if not self.evaluator.due(self._frames_before, self.frames):
            return {}
        try:
            with self._timed("eval"):
                found = self.evaluator.evaluate(self.env, self.frames)
        except EvaluationError as error:  # the batch was learned from: its row and a checkpoint come before the end
            self._failure = TrainingError(f"{error}, at {self.frames:,} frames.")
            return {}
        self._call("after_evaluation", found)
        return found.metrics()

    @_turn()
    def record_video(self) -> Path | None:
        """Record a video if one is due after this batch; None where it is not, or could not be made."""
        if not (self.group.main and self.evaluator.video_due(self._frames_before, self.frames)):
            return None
        with self._timed("eval"), self.group.own_draws():
            return self.evaluator.record_video(self.env, self.frames, self.run.videos)

    def save_due(self) -> bool:
        """Whether a checkpoint is due after this batch: by frames, by the clock, or since the policy is the best."""
        minutes = self.config.checkpoint.interval_minutes
        by_clock = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        by_frames = passed(self.config.checkpoint.interval, self._frames_before, self.frames)
        return self.group.from_main(lambda: by_clock or by_frames or self.evaluator.best_frames == self.frames)

    @_turn()
    def save(self) -> Path:
        """Save a checkpoint of this moment, once; it is the best one if the best evaluation is of this moment.

        Raises:
            TrainerEndedError: it has ended.
        """
        self._check_open()
        path = self.run.checkpoints / f"{self.frames:012d}"
        best = self.evaluator.best_frames == self.frames
        if self.saved == path:
            if best and self.group.main:  # it may have been evaluated since
                store.point(self.run.checkpoints, "best", path)
        else:
            config, keep = redact(self.config.to_dict()), self.config.checkpoint.keep_last
            state = state_of(self)
            if self.group.main:
                checkpoint.save(self.run.checkpoints, state, config, keep, best=best)
            self.saved = path
            self.saved_at = time.monotonic()
            self._call("at_checkpoint", path)
        return path

    def stop(self) -> None:
        """End `fit` after this batch: the run is saved, and its summary has the status ``stopped``."""
        self._stop = True

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.frames >= self.config.total_frames

    def batch_metrics(self, batch: TensorDictBase) -> dict[str, float]:
        """The ``train/*`` entries of a metrics row that a batch ``[num_envs, steps]`` gives."""
        entries = ("reward", "done", "step_count", "episode_reward")
        after = {key: self.group.gather(batch["next", key]) for key in entries}
        metrics = {
            "train/reward": after["reward"].mean().item(),
            "train/step_count": after["step_count"].max().item(),
        }
        if (done := after["done"]).any():
            metrics["train/episode_return"] = after["episode_reward"][done].mean().item()
            metrics["train/episode_length"] = after["step_count"][done].double().mean().item()
        check_metrics(metrics, self.frames)
        return metrics

    def time_metrics(self) -> dict[str, float]:
        """The ``time/*`` entries of a metrics row."""
        training = self.seconds["collect"] + self.seconds["update"]
        return {"time/fps": self.frames / training} | {f"time/{k}": v for k, v in self.seconds.items()}

    def summary(self, status: str) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        final, best = self.evaluator.final, self.evaluator.best
        return {
            "status": status,
            "frames": self.frames,
            "seconds": sum(self.seconds.values()),
            "final": None if final is None else final.metrics(),
            "best": None if best is None else best.metrics(),
            "weight_average": self.config.evaluation.average,
            "checkpoint": None if self.saved is None else str(self.saved),
        }

    def close(self) -> None:
        """Close the simulators and the collector, and let other processes into the run's folder."""
        self._ended = self._ended or "has ended, and left its folder to others"
        self._closing.close()

    @property
    def _frames_before(self) -> int:
        return self.frames - self.config.collector.frames_per_batch

    def _give_up(self, message: str) -> None:
        """Record why the process is about to be ended: nothing else will."""
        self.group.report(message)
        if self.group.main:
            write_json(self.run.summary, {"status": "failed", "error": message, "frames": self.frames})

    def _session(self) -> Session | Follower:
        if not self.group.main:
            return Follower()
        info = {"seed": self.config.seed, "threads": self.threads, "device": str(self.device)}
        info["learners"] = self.group.size
        return Session(self.run, self.config, info, self.frames, self.run_id, self._logged)

    def _asked_to_stop(self, session: Session | Follower) -> signal.Signals | None:
        """The signal that came to any of the learners."""
        number = self.group.largest(session.stop or 0)
        return signal.Signals(number) if number else None

    def _call(self, point: str, *arguments: object) -> None:
        """Run every callback's method for a point of the loop."""
        for callback in self.callbacks.values():
            getattr(callback, point)(self, *arguments)

    def _check_open(self) -> None:
        if self._ended:
            path = str(self.run.path)
            message = f"rlexp.Trainer.resume({path!r}) continues the run from its newest checkpoint."
            raise TrainerEndedError(f"This trainer {self._ended}: {message}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start


def fingerprint(values: Tensor) -> int:
    """The first 48 bits of the values' SHA-256: a number that a metrics row holds exactly."""
    digest = hashlib.sha256(values.detach().cpu().numpy().tobytes())
    return int.from_bytes(digest.digest()[:6])


def _status(stop: signal.Signals | None) -> str:
    return "requeue" if stop is signal.SIGUSR1 else "stopped"
