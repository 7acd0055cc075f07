"""Evaluation on whole episodes, with frozen normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.state import cloned
from rlexp.errors import RlexpError
from rlexp.floats import float32_by_default
from rlexp.kernels.evaluation import Steps
from rlexp.kernels.select import Kernels

LONGEST = 1_000_000
"""Agent steps after which an episode is taken for one that has no end."""


@dataclass(frozen=True)
class Evaluation:
    """Results of whole episodes, one entry per episode.

    Attributes:
        seeds: seed of each episode's simulator.
        returns: sum of each episode's rewards.
        lengths: agent steps of each episode.
    """

    seeds: list[int]
    returns: list[float]
    lengths: list[int]

    @property
    def mean_return(self) -> float:
        """Mean over episodes."""
        return float(np.mean(self.returns))

    def statistics(self) -> dict[str, Any]:
        """Statistics over the episodes, as ``rlexp-eval`` prints them.

        ``std_return`` has the divisor n - 1, and ``ci95_return`` is the `bootstrap_interval` of the mean return; both
        are None for one episode.
        """
        several = len(self.returns) > 1
        return {
            "mean_return": self.mean_return,
            "std_return": float(np.std(self.returns, ddof=1)) if several else None,
            "median_return": float(np.median(self.returns)),
            "min_return": min(self.returns),
            "max_return": max(self.returns),
            "ci95_return": list(bootstrap_interval(self.returns)) if several else None,
            "mean_length": float(np.mean(self.lengths)),
            "min_length": min(self.lengths),
            "max_length": max(self.lengths),
        }

    def metrics(self) -> dict[str, float]:
        """The ``eval/*`` entries of a metrics row."""
        return {
            "eval/reward": sum(self.returns) / sum(self.lengths),
            "eval/return": self.mean_return,
            "eval/step_count": max(self.lengths),
            "eval/episode_length": float(np.mean(self.lengths)),
        }


class EvaluationError(RlexpError):
    """An evaluation has no result; the message says why."""


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of evaluation episodes: the same in every evaluation of a run, and different from training's."""
    return [int(s) for s in np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(episodes)]


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979); the same values give the same interval.

    Args:
        values: independent values, one per episode or per run.
        confidence: nominal coverage; with ten values the actual coverage is a little less.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper bound.
    """
    generator = np.random.default_rng(0)
    sample = np.asarray(values, dtype=np.float64)
    # One resample at a time: all at once would not fit in memory for many thousand episodes.
    means = [sample[generator.integers(len(sample), size=len(sample))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@torch.no_grad()
@float32_by_default()
def evaluate(
    env: TransformedEnv,
    actor: TensorDictModuleBase,
    seeds: Sequence[int],
    *,
    deterministic: bool = True,
    kernels: bool = True,
) -> Evaluation:
    """Run one whole episode per seed.

    Every episode counts: environments that finish first wait for the others, because taking the first episodes to
    finish would favour short ones.

    Args:
        env: a batched environment with frozen normalisation; one episode per environment runs in parallel.
        actor: the policy.
        seeds: one per episode.
        deterministic: take the distribution's mode; otherwise sample, from torch's global generator.
        kernels: whether the array loop may replace torchrl's.

    Raises:
        EvaluationError: a reward is not finite, or an episode has not ended after `LONGEST` steps.
    """
    steps = Kernels(kernels).evaluation(env, actor) if deterministic else None
    if steps is None:
        steps = _tensordict_steps(env, actor, deterministic)
    (width,) = env.batch_size
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    for start in range(0, len(seeds), width):
        chunk = seeds[start : start + width]
        if isinstance(env.base_env, ArrayEnv):
            env.base_env.set_seeds(chunk)
        else:
            env.set_seed(chunk[0])  # torchrl's own derive the seeds of all copies from one
        running = np.ones(len(chunk), np.bool_)
        for reward, ended in steps():
            returns[start : start + width] += np.where(running, reward[: len(chunk)], 0)
            lengths[start : start + width] += running
            running &= ~ended[: len(chunk)]
            if not running.any():
                break
            if lengths.max() >= LONGEST:
                seed = seeds[int(lengths.argmax())]
                raise EvaluationError(
                    f"the episode of seed {seed} has not ended after {LONGEST:,} steps: give a time limit, "
                    "env.max_episode_steps or env.transforms.step_counter.max_steps"
                )
    if (wrong := np.flatnonzero(~np.isfinite(returns))).size:
        raise EvaluationError(
            f"evaluation reward is not finite (NaN or infinity) in the episode of seed {seeds[wrong[0]]}"
        )
    return Evaluation(list(seeds), returns.tolist(), lengths.tolist())


def _tensordict_steps(env: TransformedEnv, actor: TensorDictModuleBase, deterministic: bool) -> Steps:
    """Steps from a reset on, by torchrl's own loop: rewards and ends, each ``[num_envs]``."""
    device = next(actor.parameters()).device
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    rewards = _Rewards()
    env = TransformedEnv(env.base_env, Compose(rewards, *cloned(env)), auto_unwrap=False)

    def steps() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        tensordict = env.reset()
        while True:
            with set_exploration_type(exploration):
                acted = actor(tensordict.to(device)).to(env.device)
            stepped, tensordict = env.step_and_maybe_reset(acted)
            yield rewards.newest[:, 0].numpy(force=True), stepped["next", "done"][:, 0].numpy(force=True)

    return steps


class _Rewards(Transform):
    """Records the environment's own rewards, before transforms clip or scale them."""

    newest: Tensor

    def __init__(self) -> None:
        super().__init__(in_keys=[], out_keys=[])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.newest = next_tensordict["reward"].clone()
        return next_tensordict
