"""Run folders as `rlexp-train` leaves them, with made-up results: hundreds in seconds, for tests of what reads them.

usage: python tests/synthetic.py OUT [RUNS_PER_CONFIGURATION] [ROWS]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ENVIRONMENTS = {"hopper": ("Hopper-v5", 3000.0), "inverted_double_pendulum": ("InvertedDoublePendulum-v5", 9300.0)}


def config(
    env: str = "hopper", seed: int = 0, clip_epsilon: float = 0.2, lr: float = 3e-4, gamma: float = 0.99
) -> dict[str, Any]:
    """A resolved config, with as many nodes as are needed to tell groups apart."""
    return {
        "env": {"_target_": "rlexp.envs.GymConfig", "name": env, "id": ENVIRONMENTS[env][0], "max_episode_steps": None,
                "kwargs": {}, "transforms": {"step_counter": {"_target_": "torchrl.envs.StepCounter"}}},
        "loss": {"_target_": "rlexp.losses.ClipPPOConfig", "clip_epsilon": clip_epsilon, "gamma": gamma},
        "optim": {"_target_": "rlexp.optim.AdamConfig", "lr": lr},
        "logger": {"_target_": "rlexp.loggers.NoLoggerConfig"},
        "seed": seed,
        "threads": "auto",
    }  # fmt: skip


def curve(settings: Mapping[str, Any], evaluations: int) -> list[float]:
    """A return that rises to a height which the settings and the seed decide."""
    loss, optim = settings["loss"], settings["optim"]
    rng = np.random.default_rng([settings["seed"], int(1e6 * optim["lr"]), int(1e3 * loss["clip_epsilon"])])
    top = ENVIRONMENTS[settings["env"]["name"]][1]
    fit = (
        1
        - 0.25 * abs(np.log10(optim["lr"] / 3e-4))
        - 1.5 * abs(loss["clip_epsilon"] - 0.2)
        - 8 * (0.99 - loss["gamma"])
    )
    height = top * min(1.0, max(0.05, fit + 0.08 * rng.standard_normal()))
    progress = 1 / (1 + np.exp(-12 * (np.linspace(0, 1, evaluations) - rng.uniform(0.25, 0.45))))
    return list(map(float, height * progress + 0.02 * top * rng.standard_normal(evaluations)))


def write_run(
    path: Path,
    settings: Mapping[str, Any],
    returns: list[float],
    *,
    status: str | None = "completed",
    rows: int | None = None,
    started: str = "2030-01-01T00:00:00+00:00",
) -> Path:
    """Write one run folder.

    Args:
        path: the folder.
        settings: what ``config.yaml`` holds.
        returns: one evaluation each, evenly over the rows, the last at the end.
        status: as in ``summary.json``; None writes none, as of a run that was killed.
        rows: rows of ``metrics.jsonl``; default: one an evaluation.
        started: as in ``metadata.json``.
    """
    path.mkdir(parents=True)
    rows = rows or len(returns)
    evaluated = {round((i + 1) * rows / len(returns)): value for i, value in enumerate(returns)}
    lines = []
    for i in range(1, rows + 1):
        row = {
            "frames": 1000 * i,
            "train/reward": 1.25,
            "train/step_count": 321,
            "train/lr": 3e-4,
            "train/episode_return": 2.5,
            "train/episode_length": 12.5,
            "optim/grad_norm": 0.5,
        }
        row |= {
            f"loss/{k}": 0.0123456789 * i
            for k in ("objective", "critic", "entropy", "kl_approx", "clip_fraction", "ess", "explained_variance")
        }
        if i in evaluated:
            row |= {"eval/return": evaluated[i], "eval/reward": evaluated[i] / 1000, "eval/step_count": 1000}
        row |= {"time/fps": 2000.0, "time/collect": 0.3 * i, "time/update": 0.2 * i, "time/eval": 0.01 * i}
        lines.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (path / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    (path / "metadata.json").write_text(json.dumps({"started": started, "seed": settings["seed"]}))
    if status is not None:
        error = {"error": "RuntimeError: diverged"} if status == "failed" else {}
        (path / "summary.json").write_text(json.dumps({"status": status, "frames": 1000 * rows} | error))
    return path


def write_sweep(top: Path, seeds: int = 5, rows: int = 60) -> int:
    """Two environments, two clip ranges, two learning rates, two discounts; gives the number of runs."""
    settings = [
        config(env, seed, clip_epsilon, lr, gamma)
        for env in ENVIRONMENTS
        for clip_epsilon in (0.1, 0.2)
        for lr in (1e-4, 3e-4)
        for gamma in (0.98, 0.99)
        for seed in range(seeds)
    ]
    for job, values in enumerate(settings):
        write_run(top / str(job), values, curve(values, min(rows, 20)), rows=rows)
    return len(settings)


if __name__ == "__main__":
    print(write_sweep(Path(sys.argv[1]), *map(int, sys.argv[2:])), "runs")
