"""The statistics of a report: one `Result` per group, and comparisons of variants over environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlexp.report import statistics
from rlexp.report.grouping import Group
from rlexp.report.runs import Floats
from rlexp.report.statistics import Estimate

FEW_SEEDS = 5
ALL_ENVIRONMENTS = "all environments"
_ALL_PAIRS_UP_TO = 4


@dataclass(frozen=True)
class Result:
    """One row of the table; statistics are over seeds, of each run's final ``eval/return``.

    Attributes:
        group: the group, which has one counted run or more.
        mean: mean of the final evaluations.
        median: their median.
        iqm: their interquartile mean.
        best: mean over seeds of each run's highest evaluation; a lucky evaluation raises it.
        threshold: return to reach; None where the environment has none.
        reached: runs with an evaluation at the threshold or above.
        frames_to_threshold: median over all counted runs, infinite for a run that never reaches it; None without a
            threshold or where half the runs or more do not reach it.
        seconds_to_threshold: the same, in seconds of collection and update.
        fps: mean over seeds of frames per second of collection and update.
    """

    group: Group
    mean: Estimate
    median: Estimate
    iqm: Estimate
    best: float
    threshold: float | None
    reached: int
    frames_to_threshold: float | None
    seconds_to_threshold: float | None
    fps: float

    @property
    def seeds(self) -> int:
        """Counted runs."""
        return len(self.group.runs)


@dataclass(frozen=True)
class Curve:
    """The learning curve of one group: the interquartile mean of ``eval/return`` and its pointwise 95% interval.

    Attributes:
        result: of the group.
        frames: ``[points]``.
        middle: ``[points]``.
        low: ``[points]``.
        high: ``[points]``.
    """

    result: Result
    frames: Floats
    middle: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of X scores higher than one of Y."""

    x: str
    y: str
    probability: Estimate


@dataclass(frozen=True)
class Comparison:
    """Two variants or more that were run in the same environments.

    Attributes:
        name: the environment, or a phrase for all that are compared.
        environments: the environments.
        normalized: scores are returns mapped per environment so that 0 is the lowest final evaluation in the report and
            1 the highest (Gorsane et al. 2022, https://arxiv.org/abs/2209.10485); else plain returns.
        scores: variant to its sample, one array ``[runs]`` per environment; highest interquartile mean first.
        aggregates: variant to interquartile mean, mean and median over all its runs.
        improvements: every pair up to four variants; beyond that each against the one with the highest interquartile
            mean.
    """

    name: str
    environments: tuple[str, ...]
    normalized: bool
    scores: Mapping[str, list[Floats]]
    aggregates: Mapping[str, tuple[Estimate, Estimate, Estimate]]
    improvements: tuple[Improvement, ...]


def result_of(group: Group, threshold: float | None) -> Result:
    """The statistics of one group with at least one counted run."""
    runs = group.runs
    final = [np.array([run.final for run in runs])]
    frames = seconds = None
    reached = 0
    if threshold is not None:
        hits = np.array([run.reaches(threshold) for run in runs])
        reached = int(np.isfinite(hits[:, 0]).sum())
        # Half the runs or more at infinity would make the median infinite, or the mean of a number and infinity.
        if 2 * reached > len(runs):
            frames, seconds = (float(value) for value in np.median(hits, axis=0))
    return Result(
        group=group,
        mean=statistics.estimate(final, statistics.mean),
        median=statistics.estimate(final, statistics.median),
        iqm=statistics.estimate(final, statistics.interquartile_mean),
        best=float(np.mean([run.best for run in runs])),
        threshold=threshold,
        reached=reached,
        frames_to_threshold=frames,
        seconds_to_threshold=seconds,
        fps=float(np.mean([run.fps for run in runs])),
    )


def learning_curve(result: Result) -> Curve:
    """The learning curve over the runs of one group."""
    runs = result.group.runs
    frames, values = statistics.on_common_frames([run.frames for run in runs], [run.returns for run in runs])
    return Curve(result, frames, *statistics.band([values], statistics.interquartile_mean))


def registered_threshold(group: Group) -> float | None:
    """Gymnasium's reward threshold of the group's environment, where it is run as it is registered, else None."""
    import gymnasium

    settings = (group.runs or group.left_out)[0].settings
    changed = settings.get("env.max_episode_steps") is not None or any(
        key.startswith("env.kwargs.") for key in settings
    )
    spec = gymnasium.registry.get(str(settings.get("env.id")))
    return None if changed or spec is None or spec.reward_threshold is None else float(spec.reward_threshold)


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """Every comparison that the groups allow.

    Returns:
        One for each environment with two variants or more, then one over all environments, without
        `tied_environments`, where two or more remain and at least two variants were run in each.
    """
    finals = _finals(groups)
    comparisons = [
        _comparison(environment, (environment,), {variant: [scores] for variant, scores in variants.items()})
        for environment, variants in finals.items()
        if len(variants) > 1
    ]
    tied = tied_environments(groups)
    compared = {environment: variants for environment, variants in finals.items() if environment not in tied}
    everywhere = [v for v in next(iter(compared.values()), {}) if all(v in variants for variants in compared.values())]
    if len(compared) > 1 and len(everywhere) > 1:
        name = f"{len(compared)} of {len(finals)} environments" if tied else ALL_ENVIRONMENTS
        scaled = {environment: _normalized(variants) for environment, variants in compared.items()}
        samples = {variant: [scaled[environment][variant] for environment in scaled] for variant in everywhere}
        comparisons.append(_comparison(name, tuple(compared), samples, normalized=True))
    return comparisons


def tied_environments(groups: Sequence[Group]) -> tuple[str, ...]:
    """Environments, of several, in which the final evaluations of two variants or more are all equal.

    There is nothing to normalize returns by in them, so that they cannot be part of a comparison over environments.
    """
    finals = _finals(groups)
    if len(finals) < 2:
        return ()
    return tuple(
        environment
        for environment, variants in finals.items()
        if len(variants) > 1 and np.ptp(np.concatenate(list(variants.values()))) == 0
    )


def _finals(groups: Sequence[Group]) -> dict[str, dict[str, Floats]]:
    """Environment to variant to the final evaluations ``[runs]``."""
    finals: dict[str, dict[str, Floats]] = {}
    for group in groups:
        if group.runs:
            finals.setdefault(group.environment, {})[group.variant] = np.array([run.final for run in group.runs])
    return finals


def _normalized(variants: Mapping[str, Floats]) -> dict[str, Floats]:
    pooled = np.concatenate(list(variants.values()))
    low, span = pooled.min(), np.ptp(pooled)
    return {variant: (scores - low) / span for variant, scores in variants.items()}


def _comparison(
    name: str, environments: tuple[str, ...], samples: Mapping[str, list[Floats]], *, normalized: bool = False
) -> Comparison:
    kinds = (statistics.interquartile_mean, statistics.mean, statistics.median)
    aggregates = {
        variant: (
            statistics.estimate(sample, kinds[0]),
            statistics.estimate(sample, kinds[1]),
            statistics.estimate(sample, kinds[2]),
        )
        for variant, sample in samples.items()
    }
    ranked = sorted(samples, key=lambda variant: (-aggregates[variant][0].value, variant))
    pairs = combinations(ranked, 2) if len(ranked) <= _ALL_PAIRS_UP_TO else ((ranked[0], y) for y in ranked[1:])
    return Comparison(
        name,
        environments,
        normalized,
        {variant: samples[variant] for variant in ranked},
        {variant: aggregates[variant] for variant in ranked},
        tuple(Improvement(x, y, statistics.probability_of_improvement(samples[x], samples[y])) for x, y in pairs),
    )
