"""Point estimates and stratified bootstrap intervals over a few runs, as Agarwal et al. (2021) recommend.

Agarwal, R., Schwarzer, M., Castro, P. S., Courville, A., Bellemare, M. G. (2021). Deep Reinforcement Learning at the
Edge of the Statistical Precipice. NeurIPS. https://arxiv.org/abs/2108.13264

A sample is a list of arrays, one per environment (the strata), each with one score per run. Runs are resampled within
their environment. SciPy does the resampling and the estimators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rlexp.report.runs import Floats

CONFIDENCE = 0.95
RESAMPLES = 10_000
CURVE_RESAMPLES = 2_000
PERMUTATIONS = 9_999
# Entries of an array with a row for each split of the runs: ten and ten can be split in 184,756 ways.
_LARGEST_EXACT = 20 * 200_000

Sample = Sequence[Floats]
Statistic = Callable[..., Any]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval.

    Attributes:
        value: the point estimate.
        low: lower end; None where there is no interval, because a stratum has a single run.
        high: upper end, as ``low``.
    """

    value: float
    low: float | None = None
    high: float | None = None


def mean(*sample: Floats, axis: int = -1) -> Any:
    """Mean of all runs."""
    return np.mean(np.concatenate(sample, axis=axis), axis=axis)


def median(*sample: Floats, axis: int = -1) -> Any:
    """Median of all runs."""
    return np.median(np.concatenate(sample, axis=axis), axis=axis)


def interquartile_mean(*sample: Floats, axis: int = -1) -> Any:
    """Mean of the middle half of all runs: a quarter of them, rounded down, is cut off at each end."""
    return stats.trim_mean(np.concatenate(sample, axis=axis), 0.25, axis=axis)


def estimate(sample: Sample, statistic: Statistic, resamples: int = RESAMPLES) -> Estimate:
    """A statistic with its percentile interval from a stratified bootstrap.

    Args:
        sample: one array ``[runs]`` per environment.
        statistic: takes the sample's arrays and ``axis``.
        resamples: bootstrap resamples; the generator is seeded, so that the same runs give the same report.
    """
    value = float(statistic(*sample, axis=-1))
    if min(scores.shape[-1] for scores in sample) < 2:
        return Estimate(value)
    low, high = _interval(sample, statistic, resamples)
    return Estimate(value, float(low), float(high))


def aggregates(sample: Sample) -> dict[str, Estimate]:
    """Each of `AGGREGATES` of normalized scores, with its interval."""
    return {name: estimate(sample, statistic) for name, statistic in AGGREGATES.items()}


def band(sample: Sample, statistic: Statistic, resamples: int = CURVE_RESAMPLES) -> tuple[Floats, Floats, Floats]:
    """A statistic at many points with its pointwise interval; whole runs are resampled.

    Args:
        sample: one array ``[points, runs]`` per environment.
        statistic: takes the sample's arrays and ``axis``.
        resamples: bootstrap resamples.

    Returns:
        Value, lower and upper end, each ``[points]``; the ends are the value where a stratum has a single run.
    """
    value = np.asarray(statistic(*sample, axis=-1))
    if min(scores.shape[-1] for scores in sample) < 2:
        return value, value, value
    low, high = _interval(sample, statistic, resamples)
    return value, np.asarray(low), np.asarray(high)


def above(sample: Sample, thresholds: Floats) -> list[Floats]:
    """Whether each run's score is above each threshold, one array ``[thresholds, runs]`` per environment.

    Its `mean_of_strata` is the performance profile (Agarwal et al. 2021).
    """
    return [(scores > thresholds[:, None]).astype(float) for scores in sample]


def mean_of_strata(*sample: Floats, axis: int = -1) -> Any:
    """Mean over environments of the mean over runs."""
    return np.mean([scores.mean(axis=axis) for scores in sample], axis=0)


def median_of_strata(*sample: Floats, axis: int = -1) -> Any:
    """Median over environments of the mean over runs."""
    return np.median([scores.mean(axis=axis) for scores in sample], axis=0)


def optimality_gap(*sample: Floats, axis: int = -1) -> Any:
    """By how much runs miss a normalized score of 1, those above it not at all; mean over environments."""
    return mean_of_strata(*(np.maximum(1 - scores, 0) for scores in sample), axis=axis)


AGGREGATES: Mapping[str, Statistic] = {
    "IQM": interquartile_mean,
    "median": median_of_strata,
    "mean": mean_of_strata,
    "optimality gap": optimality_gap,
}
"""What Agarwal et al. (2021) report of normalized scores over environments."""


def normalized(scores: Floats, zero: float, one: float) -> Floats:
    """Scores on a scale on which the return ``zero`` is 0 and ``one`` is 1."""
    return (scores - zero) / (one - zero)


def probability_of_improvement(x: Sample, y: Sample) -> Estimate:
    """Probability that a run of X scores higher than one of Y, ties counted half, mean over environments.

    In each environment this is the Mann-Whitney U statistic over the number of pairs (Agarwal et al. 2021).

    Args:
        x: one array ``[runs]`` per environment.
        y: the same for the other; the environments in the same order.
    """
    return estimate([*x, *y], _improvement, CURVE_RESAMPLES)


def cautious_test(x: Sample, y: Sample, lost: tuple[Sequence[int], Sequence[int]]) -> float:
    """`permutation_test` of the runs that have a score, or where that is less certain, with the others ranked lowest.

    Args:
        x: one array ``[runs]`` per environment.
        y: the same for the other; the environments in the same order.
        lost: further runs of X and of Y in each environment, which have no score.

    Returns:
        The larger p-value of the two, 1 where they do not agree on which is better.
    """
    p = permutation_test(x, y)
    if not any(map(any, lost)):
        return p
    of_x, of_y = (
        [np.pad(scores, (0, runs), constant_values=-np.inf) for scores, runs in zip(sample, of, strict=True)]
        for sample, of in zip((x, y), lost, strict=True)
    )
    agree = (_improvement(*x, *y) - 0.5) * (_improvement(*of_x, *of_y) - 0.5) > 0
    return max(p, permutation_test(of_x, of_y)) if agree else 1.0


def permutation_test(x: Sample, y: Sample) -> float:
    """Two-sided p-value of the hypothesis that runs of X and of Y end alike, by their probability of improvement.

    Runs are exchanged between X and Y within each environment: in every way where that is one environment with up to
    ten runs each, which is the exact Mann-Whitney test, else at random.

    Args:
        x: one array ``[runs]`` per environment.
        y: the same for the other; the environments in the same order.
    """
    exact = _is_exact(x, y)
    observed, found = 0.0, np.zeros(1)
    for stratum, (of_x, of_y) in enumerate(zip(x, y, strict=True)):
        ranks = stats.rankdata(np.concatenate([of_x, of_y]))
        pairs, middle = len(of_x) * len(of_y), len(of_x) * (len(ranks) + 1) / 2
        observed += (ranks[: len(of_x)].sum() - middle) / pairs
        splits = _splits(len(of_x), len(ranks)) if exact else _drawn_splits(len(of_x), len(ranks), stratum)
        found = found + (splits @ ranks - middle) / pairs
    as_far = np.sum(np.abs(found) >= abs(observed) - 1e-9)  # equal sums differ by rounding
    # The observed runs are one of all splits, and are counted with those that are drawn (Phipson and Smyth 2010).
    return float(as_far / len(found) if exact else (1 + as_far) / (1 + PERMUTATIONS))


def least_p(x: Sample, y: Sample) -> float:
    """The smallest p-value that `permutation_test` gives for so many runs, whatever their scores."""
    splits = _number_of_splits(x, y)
    return 2 / splits if _is_exact(x, y) else max(2 / splits, 1 / (1 + PERMUTATIONS))


def _is_exact(x: Sample, y: Sample) -> bool:
    return len(x) == 1 and _number_of_splits(x, y) * (len(x[0]) + len(y[0])) <= _LARGEST_EXACT


def _number_of_splits(x: Sample, y: Sample) -> int:
    return prod(comb(len(of_x) + len(of_y), len(of_x)) for of_x, of_y in zip(x, y, strict=True))


@cache
def _splits(chosen: int, runs: int) -> Floats:
    """Every choice of so many of the runs, as a row with 1 for each that is chosen and 0 for the others."""
    return _rows(np.array(list(combinations(range(runs), chosen))), runs)


@cache
def _drawn_splits(chosen: int, runs: int, stratum: int) -> Floats:
    """`PERMUTATIONS` choices, drawn at random, as `_splits`."""
    drawn = np.random.default_rng([chosen, runs, stratum]).random((PERMUTATIONS, runs))
    return _rows(np.argsort(drawn, axis=1)[:, :chosen], runs)


def _rows(chosen: NDArray[np.int64], runs: int) -> Floats:
    rows = np.zeros((len(chosen), runs))
    np.put_along_axis(rows, chosen, 1.0, axis=1)
    return rows


def holm(values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted to control the family-wise error rate (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.array(values)[order] * np.arange(len(values), 0, -1)))
    return adjusted.tolist()


def on_common_frames(frames: Sequence[Floats], values: Sequence[Floats], points: int = 200) -> tuple[Floats, Floats]:
    """Several runs' curves at the same frames.

    Args:
        frames: ``[evaluations]`` per run, increasing.
        values: ``[evaluations]`` per run.
        points: where runs were not evaluated at the same frames, or more often than this, they are interpolated
            linearly at this many points, over the range that all of them cover.

    Returns:
        Frames ``[points]`` and values ``[points, runs]``.
    """
    first = frames[0]
    if len(first) <= points and all(np.array_equal(first, other) for other in frames):
        return first, np.stack(values, axis=-1)
    start, end = max(f[0] for f in frames), min(f[-1] for f in frames)
    grid = np.linspace(start, end, points) if start < end else np.array([end])
    return grid, np.stack([np.interp(grid, f, v) for f, v in zip(frames, values, strict=True)], axis=-1)


def _improvement(*sample: Floats, axis: int = -1) -> Any:
    """Mean over environments of the fraction of pairs that X wins; the arrays of X come first."""
    half = len(sample) // 2
    return np.mean([_wins(x, y, axis) for x, y in zip(sample[:half], sample[half:], strict=True)], axis=0)


def _wins(x: Floats, y: Floats, axis: int) -> Any:
    # Only the statistic is used; the exact method would count permutations for a p-value.
    u = stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
    return u / (x.shape[axis] * y.shape[axis])


def _interval(sample: Sample, statistic: Statistic, resamples: int) -> tuple[Any, Any]:
    found = stats.bootstrap(
        tuple(sample),
        statistic,
        n_resamples=resamples,
        # Bounds the memory: a curve of 200 points and ten seeds takes 8 MB per batch.
        batch=500,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return found.low, found.high
