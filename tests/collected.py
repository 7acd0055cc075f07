"""Trainers and simulators that have processes, and what runs with them in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import warm

from rlexp import Trainer, load_config, workers
from rlexp.envs.gymnasium.batched import BatchedGymEnv

# Episodes of 25 steps and batches of 32 a simulator: resets fall into every batch, and batches end in mid-episode.
SMALL = [
    *("collector.frames_per_batch=128", "env.num_envs=4", "env.max_episode_steps=25", "env.init_random_steps=30"),
    *("num_epochs=2", "minibatch_size=32", "evaluation.episodes=2", "evaluation.interval=512"),
    *("total_frames=512", "checkpoint.interval=128", "logger=none", "threads=1", "device=cpu"),
]


def trainer(kind: str, folder: Path, *overrides: str) -> Trainer:
    return Trainer(load_config([*SMALL, f"collector={kind}", *overrides]), folder)


def simulate(folder: Path, warm_process: str, env_id: str, *, die: bool = False) -> None:
    """Step simulators of two processes in a folder, which then holds the workers' numbers; close them, or be killed."""
    _start_workers_by(warm_process)
    os.chdir(folder)
    env = BatchedGymEnv(env_id, num_envs=2, num_workers=2)
    env.rollout(2)
    (folder / "pids").write_text(" ".join(str(worker.pid) for worker in env.workers))
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    env.close()


def die_while_workers_work(folder: Path, warm_process: str) -> None:
    _start_workers_by(warm_process)
    subject = trainer("multi_sync", folder / "run", "collector.frames_per_batch=400_000", "total_frames=400_000")
    (folder / "pids").write_text(" ".join(map(str, subject.collector.workers.pids)))
    subject.collector._ask()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _start_workers_by(warm_process: str) -> None:
    os.environ[warm.ADDRESS] = warm_process
    workers._start_program = warm.start_program  # type: ignore[assignment]
