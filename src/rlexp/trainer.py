"""The trainer: builds the parts from the config, owns their identity, and runs the loop."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlexp import checkpoint
from rlexp.callbacks import Callback
from rlexp.config import ConfigError, Problem, build_at, check_targets, new_run_path
from rlexp.evaluation import Evaluation, evaluate, evaluation_seeds
from rlexp.experiment import Experiment, read_config
from rlexp.normalization import commit_normalization, copy_normalization, init_normalization
from rlexp.rundir import RunDir
from rlexp.seeding import rng_state, seed_everything
from rlexp.session import Session

log = logging.getLogger(__name__)

_LOSS_METRICS = {
    "loss_objective": "loss/objective",
    "loss_critic": "loss/critic",
    "entropy": "loss/entropy",
    "kl_approx": "loss/kl_approx",
    "clip_fraction": "loss/clip_fraction",
    "ESS": "loss/ess",
    "grad_norm": "optim/grad_norm",
}


class TrainingError(Exception):
    """Training cannot go on; the message says which number went wrong, and when."""


class Stopped(Exception):  # noqa: N818 - a signal is no error
    """A signal stopped the run, after its batch was finished and saved.

    Attributes:
        signal: which one.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}")
        self.signal = received


class Trainer:
    """Trains one agent as an experiment describes it, into one folder.

    Args:
        experiment: the checked config.
        run_dir: the run's folder; None makes a new one under ``outputs``.

    Raises:
        ConfigError: a part cannot be built with these settings.
    """

    def __init__(self, experiment: Experiment, run_dir: Path | str | None = None) -> None:
        check_targets(experiment)
        self.experiment = experiment
        self.device = pick_device(experiment.device)
        self.threads = set_threads(experiment.threads)
        seed_everything(experiment.seed)

        spec = experiment.env
        self.env = spec.build(spec.num_envs)
        self.env.set_seed(experiment.seed)
        init_normalization(self.env, spec.init_random_steps)
        self.eval_env = spec.build(experiment.evaluation.episodes)
        self.networks = experiment.policy.build(self.env, self.device)
        self.objective = experiment.loss.build(self.networks, spec.num_envs, self.device)
        self.parameters = self.networks.parameters()
        self.optimizer, self.scheduler = experiment.optim.build(self.parameters, experiment.num_batches)
        self.collector = experiment.collector.build(self.env, self.networks.actor, spec.frame_skip, self.device)

        self.callbacks: list[Callback] = [
            build_at(f"callbacks.{name}", node.build) for name, node in experiment.callbacks.items()
        ]
        self.run = RunDir(Path(run_dir) if run_dir is not None else new_run_path(spec.name))
        self.frames = 0
        self.iteration = 0
        self.final: Evaluation | None = None
        self.best: Evaluation | None = None
        self.saved: Path | None = None
        self.seconds = {"collect": 0.0, "update": 0.0, "eval": 0.0}

    @classmethod
    def from_config(cls, config: Experiment | Mapping[str, Any], run_dir: Path | str | None = None) -> Trainer:
        """Build a trainer from a checked config, or from plain values, which are checked here.

        Raises:
            ConfigError: with everything that is wrong with the config.
        """
        return cls(config if isinstance(config, Experiment) else read_config(dict(config)), run_dir)

    def fit(self) -> dict[str, Any]:
        """Train until the budget is spent or a signal asks to stop.

        Returns:
            What ``summary.json`` holds: status, frames, seconds, final and best evaluation.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        info = {"seed": self.experiment.seed, "threads": self.threads, "device": str(self.device)}
        batches = iter(self.collector)
        with Session(self.run, self.experiment, info) as session:
            last = False
            while not last:
                batch = self.collect(batches)
                self._call("after_collect", batch)
                last = self.frames >= self.experiment.total_frames or session.stop is not None
                metrics = self.train_metrics(batch) | self.update(batch)
                self.scheduler.step()
                commit_normalization(self.env)
                self._call("after_update", metrics)
                if last or self._due(self.experiment.evaluation.interval):
                    metrics |= self.evaluate().metrics()
                session.log({"frames": self.frames} | metrics | self.time_metrics())
                if last or self._due(self.experiment.checkpoint.interval):
                    self.save()
            session.summary = self.summary("completed" if session.stop is None else "stopped")
        self.close()
        if session.stop is not None:
            raise Stopped(session.stop)
        return session.summary

    def collect(self, batches: Iterator[TensorDictBase]) -> TensorDictBase:
        """One batch of transitions ``[num_envs, steps]`` from the current policy."""
        with self._timed("collect"):
            batch = next(batches)
        self.frames += batch.numel() * self.experiment.env.frame_skip
        self.iteration += 1
        return batch

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Improve the policy on one batch: the inner loop of PPO (Schulman et al. 2017, algorithm 1).

        Returns:
            Metrics of the update, means over its minibatches.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        objective, records = self.objective, []
        with self._timed("update"):
            if objective.reward_norm is not None:
                reward = objective.reward_norm(batch["next", "reward"], batch["next", "done"])
                batch.set(("next", "reward"), reward)
            for epoch in range(self.experiment.num_epochs):
                with torch.no_grad():
                    objective.advantage(batch)
                if epoch == 0:
                    explained = explained_variance(batch["state_value"], batch["value_target"])
                for minibatch in self.minibatches(batch):
                    losses = objective.loss(minibatch)
                    total = torch.stack([loss for name, loss in losses.items() if name.startswith("loss_")]).sum()
                    self.optimizer.zero_grad()
                    total.backward()
                    grad_norm = torch.nn.utils.clip_grad_norm_(
                        self.parameters, self.experiment.max_grad_norm, foreach=True
                    )
                    self.optimizer.step()
                    records.append(losses.detach().set("grad_norm", grad_norm))
        means = TensorDict.stack(records).mean(0)
        if "entropy" not in means:
            means["entropy"] = -batch["action_log_prob"].mean()
        metrics = {metric: means[key].item() for key, metric in _LOSS_METRICS.items() if key in means}
        return self._checked(metrics | {"loss/explained_variance": explained})

    def minibatches(self, batch: TensorDictBase) -> Iterator[TensorDictBase]:
        """The batch's steps in a new random order, ``minibatch_size`` at a time, each at most once.

        Steps that do not fill a minibatch are left out, different ones each time.
        """
        size = self.experiment.minibatch_size
        steps = batch.select(*self.objective.keys).reshape(-1)
        order = torch.randperm(len(steps), device=batch.device)
        for indices in order[: len(steps) // size * size].view(-1, size):
            yield steps[indices]

    def evaluate(self) -> Evaluation:
        """Evaluate the current policy; the best so far is saved and named ``best``."""
        with self._timed("eval"):
            copy_normalization(self.env, self.eval_env)
            seeds = evaluation_seeds(self.experiment.seed, self.experiment.evaluation.episodes)
            self.final = evaluate(self.eval_env, self.networks.actor, seeds)
        log.info(
            "%s frames: evaluation return %.1f (%d episodes of %.0f steps on average)",
            f"{self.frames:,}", self.final.mean_return, len(seeds), sum(self.final.lengths) / len(seeds),
        )  # fmt: skip
        if self.best is None or self.final.mean_return > self.best.mean_return:
            self.best = self.final
            checkpoint.point(self.run.checkpoints, "best", self.save())
        self._call("after_evaluation", self.final)
        return self.final

    def save(self) -> Path:
        """Save a checkpoint of this moment, once."""
        path = self.run.checkpoints / f"{self.frames:012d}"
        if self.saved != path:
            keep = self.experiment.checkpoint.keep_last
            self.saved = checkpoint.save(self.run.checkpoints, self.state(), self.experiment.to_dict(), keep)
            self._call("at_checkpoint", path)
        return path

    def state(self) -> checkpoint.TrainState:
        """Everything of this run that must survive it."""
        reward_norm = self.objective.reward_norm
        return checkpoint.TrainState(
            frames=self.frames,
            iteration=self.iteration,
            best_return=None if self.best is None else self.best.mean_return,
            seconds=dict(self.seconds),
            actor=self.networks.actor.state_dict(),
            critic=self.networks.critic.state_dict(),
            transforms=self.env.transform.state_dict(),
            reward_norm={} if reward_norm is None else reward_norm.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            rng=rng_state(),
        )

    def train_metrics(self, batch: TensorDictBase) -> dict[str, float]:
        """The ``train/*`` entries of a metrics row."""
        after = batch["next"]
        metrics = {
            "train/reward": after["reward"].mean().item(),
            "train/step_count": after["step_count"].max().item(),
            "train/lr": self.scheduler.get_last_lr()[0],
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
        for callback in self.callbacks:
            getattr(callback, point)(self, *arguments)

    def _due(self, interval: int | None) -> bool:
        """Whether this batch passed a multiple of ``interval`` frames."""
        if interval is None:
            return False
        before = self.frames - self.experiment.collector.frames_per_batch
        return self.frames // interval > before // interval

    def _checked(self, metrics: dict[str, float]) -> dict[str, float]:
        for name, value in metrics.items():
            if value - value != 0:
                raise TrainingError(f"{name} is {value} at {self.frames:,} frames.")
        return metrics

    def close(self) -> None:
        """Close the simulators and the collector."""
        self.collector.shutdown()
        self.eval_env.close()

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - start


def explained_variance(value: Tensor, target: Tensor) -> float:
    """Share of the targets' variance that the critic explains: 1 is all of it, 0 none, negative worse than none."""
    variance = target.var()
    return float(1 - (target - value).var() / variance) if variance > 0 else 0.0


def pick_device(name: str) -> torch.device:
    """The device that the ``device`` setting means.

    Raises:
        ConfigError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        available = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ConfigError([Problem("device", f"there is no such device. Available: {available}.", name)])
    return device


def set_threads(threads: int | str) -> int:
    """Set and return torch's thread count; ``auto`` is one, since small networks lose more by waking threads."""
    count = 1 if threads == "auto" else int(threads)
    torch.set_num_threads(count)
    return count
