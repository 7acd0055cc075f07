"""stable-baselines3's PPO with its zoo's tuned settings, on the tasks of rlexp's presets and evaluated as its runs are.

Needs the extra rlexp[bench].

    python benchmarks/zoo.py                                  HalfCheetah, Ant, Hopper and Walker2d, seeds 0 to 4
    python benchmarks/zoo.py --tasks ant --seeds 0-2 --workers 2
    python benchmarks/zoo.py --no-run --page docs/learning.md only the table, of the results there are

Finished runs are kept in ``zoo.csv`` and not repeated. Each run has one core. Seeds are shifted where rlexp's
are, in `learning.RESEEDED`.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from learning import Results, insert, interval, numbers, seeds_of, shown

from rlexp.agent.evaluation import evaluation_seeds
from rlexp.experiment import load_config
from rlexp.files import write_text
from rlexp.report import statistics

HERE = Path(__file__).parent
BEGIN, END = "<!-- written by benchmarks/zoo.py -->", "<!-- end of what benchmarks/zoo.py writes -->"
FRAMES, EPISODES = 1_000_000, 20
_WIDE = {"log_std_init": -2.0, "ortho_init": False, "activation_fn": torch.nn.ReLU, "net_arch": [256, 256]}
SETTINGS: dict[str, dict[str, Any]] = {
    "half_cheetah": {
        **{"n_steps": 512, "batch_size": 64, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.92, "clip_range": 0.1},
        **{"learning_rate": 2.0633e-5, "ent_coef": 0.000401762, "max_grad_norm": 0.8, "vf_coef": 0.58096},
        "policy_kwargs": _WIDE,
    },
    "ant": {},
    "hopper": {
        **{"n_steps": 512, "batch_size": 32, "n_epochs": 5, "gamma": 0.999, "gae_lambda": 0.99, "clip_range": 0.2},
        **{"learning_rate": 9.80828e-5, "ent_coef": 0.00229519, "max_grad_norm": 0.7, "vf_coef": 0.835671},
        "policy_kwargs": _WIDE,
    },
    "walker2d": {
        **{"n_steps": 512, "batch_size": 32, "n_epochs": 20, "gamma": 0.99, "gae_lambda": 0.95, "clip_range": 0.1},
        **{"learning_rate": 5.05041e-5, "ent_coef": 0.000585045, "max_grad_norm": 1.0, "vf_coef": 0.871923},
    },
}
"""PPO's arguments for each task, of ``hyperparams/ppo.yml`` in rl-baselines3-zoo, made for v3; Ant has the defaults.

All have one simulator whose observations and rewards are normalised, and 1M frames.
"""
_COLUMNS = ("task", "seed", "frames", "seconds", "return")


def train(task: str, seed: int, frames: int = FRAMES, episodes: int = EPISODES) -> tuple[int, float, float]:
    """Train and evaluate one run in this process.

    Returns:
        Frames, seconds of training, and the mean return of ``episodes`` deterministic episodes with the seeds that
        rlexp evaluates a run of this seed with.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    preset = load_config([f"experiment={task}"]).to_dict()["env"]
    settings, kwargs = SETTINGS[task], preset["kwargs"]
    env = VecNormalize(
        make_vec_env(preset["id"], n_envs=1, seed=seed, env_kwargs=kwargs), gamma=settings.get("gamma", 0.99)
    )
    model = PPO("MlpPolicy", env, seed=seed, device="cpu", **settings)
    start = time.perf_counter()
    model.learn(frames)
    seconds = time.perf_counter() - start
    returns, simulator = [], gymnasium.make(preset["id"], **kwargs)
    for episode in evaluation_seeds(seed, episodes):
        observation, _ = simulator.reset(seed=episode)
        total, ended = 0.0, False
        while not ended:
            action, _ = model.predict(env.normalize_obs(observation), deterministic=True)
            observation, reward, terminated, truncated, _ = simulator.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return model.num_timesteps, seconds, float(np.mean(returns))


def read(path: Path) -> dict[tuple[str, int], tuple[int, float, float]]:
    """What `train` gave, by task and seed; empty where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(r["task"], int(r["seed"])): (int(r["frames"]), float(r["seconds"]), float(r["return"])) for r in rows}


def run(wanted: Sequence[tuple[str, int]], workers: int) -> Iterator[tuple[tuple[str, int], tuple[int, float, float]]]:
    """Train in processes of their own, and give each run's result when it ends; a run that fails is named on stderr."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(train, task, seed): (task, seed) for task, seed in wanted}
        try:
            for future in as_completed(futures):
                task, seed = futures[future]
                if (error := future.exception()) is None:
                    yield (task, seed), future.result()
                else:
                    print(f"{task} seed {seed} failed: {error!r}", file=sys.stderr)
        finally:
            pool.shutdown(cancel_futures=True)


def table(path: Path, results: Results, seeds: Sequence[int]) -> str:
    """Markdown: a row a task, stable-baselines3 beside rlexp, of the seeds that both have."""
    found = read(path)
    rows = ["| task | stable-baselines3, zoo | every seed | rlexp, same seeds | every seed |", "|" + " --- |" * 5]
    for task in SETTINGS:
        curves = results.read(task)
        both = [seed for seed in seeds_of(task, seeds) if (task, seed) in found and seed in curves]
        if both:
            theirs, ours = [found[task, seed][2] for seed in both], [curves[seed].returns[-1] for seed in both]
            cells = [cell for scores in (theirs, ours) for cell in _cells(np.array(scores))]
            rows.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cells(scores: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[str, str]:
    return interval(statistics.estimate([scores], statistics.mean)), ", ".join(map(shown, scores))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, keep what ended, and print or insert the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", default=["0-4"], help="as 0-4, or 0 1 2")
    parser.add_argument("--workers", type=int, default=1, help="runs at once")
    parser.add_argument("--results", type=Path, default=HERE / "zoo.csv", help="CSV of the finished runs")
    parser.add_argument("--page", type=Path, help="page that the table is written into; without it, it is printed")
    parser.add_argument("--no-run", action="store_true", help="only the table, of the results there are")
    given = parser.parse_args(arguments)
    seeds = sorted({seed for text in given.seeds for seed in numbers(text)})
    found = read(given.results)
    wanted = [(task, seed) for place in seeds for task in given.tasks for seed in seeds_of(task, [place])]
    left = [] if given.no_run else [key for key in wanted if key not in found]
    for key, result in run(left, given.workers):
        found = read(given.results) | {key: result}  # another process may have added to the file meanwhile
        rows = [f"{task},{seed},{f},{s:.1f},{r!r}" for (task, seed), (f, s, r) in sorted(found.items())]
        write_text(given.results, "\n".join([",".join(_COLUMNS), *rows]) + "\n")
        print(f"{key[0]} seed {key[1]}: {shown(result[2])}", file=sys.stderr)
    text = table(given.results, Results(HERE / "results"), seeds)
    if given.page is None:
        print(text, end="")
    else:
        insert(given.page, text, BEGIN, END)
    return 0 if given.no_run or all(key in found for key in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
