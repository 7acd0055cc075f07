"""The statistics of a report: one `Result` per group, and comparisons of variants over environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rlexp.report import statistics
from rlexp.report.grouping import Group
from rlexp.report.runs import Floats
from rlexp.report.statistics import Estimate

FEW_SEEDS = 5
ALL_ENVIRONMENTS = "all environments"
_ALL_PAIRS_UP_TO = 4

References = Mapping[str, tuple[float, float]]
"""Environment to the returns that are the normalized scores 0 and 1."""


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
    """The probability that a run of X scores higher than one of Y.

    Attributes:
        x: the variant.
        y: the other.
        probability: its value and interval, not adjusted for multiple comparisons.
        p: of `statistics.cautious_test`, adjusted (`statistics.holm`) for all pairs of all environments, or of the
            comparison over environments; shown or not, since the results decide which are shown.
        least: the smallest p that so many runs and pairs allow.
    """

    x: str
    y: str
    probability: Estimate
    p: float
    least: float


@dataclass(frozen=True)
class Comparison:
    """Variants that were run in the same environments.

    Attributes:
        name: the environment, or a phrase for all that are compared.
        environments: the environments.
        references: the returns that are mapped to 0 and 1 in each environment; empty where scores are plain returns.
        scores: variant to its sample, one array ``[runs]`` per environment; highest interquartile mean first.
        incomplete: variant to the number of its seeds without a score, in each environment.
        aggregates: variant to each of `statistics.AGGREGATES`, of normalized scores; empty for plain returns.
        improvements: every pair up to four variants; beyond that each against the one with the highest interquartile
            mean.
    """

    name: str
    environments: tuple[str, ...]
    references: References
    scores: Mapping[str, list[Floats]]
    incomplete: Mapping[str, list[int]]
    aggregates: Mapping[str, Mapping[str, Estimate]]
    improvements: tuple[Improvement, ...]

    @property
    def normalized(self) -> bool:
        """Whether it is over environments, of normalized scores."""
        return bool(self.references)


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


def compare(groups: Sequence[Group], references: References | None = None) -> list[Comparison]:
    """Every comparison that the groups allow.

    Args:
        groups: what to compare.
        references: of every environment; by default the lowest and the highest final evaluation of the groups there
            (Gorsane et al. 2022, https://arxiv.org/abs/2209.10485).

    Returns:
        One for each environment with two variants or more, then one over all environments, where two or more remain
        and at least two variants, or one with given references, were run in each. Without them it leaves out
        `tied_environments`.
    """
    finals = _finals(groups)
    incomplete = {(group.environment, group.variant): group.incomplete for group in groups}
    comparisons = _tested(
        [
            _comparison(environment, (environment,), {variant: [v] for variant, v in variants.items()}, incomplete)
            for environment, variants in finals.items()
            if len(variants) > 1
        ]
    )
    tied = () if references else tied_environments(groups)
    compared = {environment: variants for environment, variants in finals.items() if environment not in tied}
    everywhere = [v for v in next(iter(compared.values()), {}) if all(v in variants for variants in compared.values())]
    if len(compared) > 1 and len(everywhere) > (0 if references else 1):
        name = f"{len(compared)} of {len(finals)} environments" if tied else ALL_ENVIRONMENTS
        scales = {
            environment: (references or {}).get(environment) or _extremes(v) for environment, v in compared.items()
        }
        samples = {
            variant: [statistics.normalized(compared[env][variant], *scale) for env, scale in scales.items()]
            for variant in everywhere
        }
        comparisons += _tested([_comparison(name, tuple(compared), samples, incomplete, scales)])
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


def absent_variants(groups: Sequence[Group], tied: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Variants that a comparison over environments leaves out, with the environments where they have no completed run.

    Environments in ``tied``, or in which no run was completed, are in no such comparison.
    """
    finals = _finals(groups)
    compared = [environment for environment in finals if environment not in tied]
    lacking = {
        variant: tuple(environment for environment in compared if variant not in finals[environment])
        for variant in dict.fromkeys(group.variant for group in groups)
    }
    return {variant: where for variant, where in lacking.items() if where and len(compared) > 1}


def _finals(groups: Sequence[Group]) -> dict[str, dict[str, Floats]]:
    """Environment to variant to the final evaluations ``[runs]``."""
    finals: dict[str, dict[str, Floats]] = {}
    for group in groups:
        if group.runs:
            finals.setdefault(group.environment, {})[group.variant] = np.array([run.final for run in group.runs])
    return finals


def _extremes(variants: Mapping[str, Floats]) -> tuple[float, float]:
    pooled = np.concatenate(list(variants.values()))
    return float(pooled.min()), float(pooled.max())


def _comparison(
    name: str,
    environments: tuple[str, ...],
    samples: Mapping[str, list[Floats]],
    incomplete: Mapping[tuple[str, str], int],
    references: References | None = None,
) -> Comparison:
    """A comparison that is not `_tested` yet."""
    middle = {variant: float(statistics.interquartile_mean(*sample)) for variant, sample in samples.items()}
    ranked = sorted(samples, key=lambda variant: (-middle[variant], variant))
    return Comparison(
        name,
        environments,
        references or {},
        {variant: samples[variant] for variant in ranked},
        {variant: [incomplete[environment, variant] for environment in environments] for variant in ranked},
        {variant: statistics.aggregates(samples[variant]) for variant in ranked} if references else {},
        (),
    )


def _tested(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with their improvements, whose p-values are adjusted for the pairs of all of them."""
    tests = [(of, x, y) for of in comparisons for x, y in combinations(of.scores, 2)]
    adjusted = statistics.holm(
        [
            statistics.cautious_test(of.scores[x], of.scores[y], (of.incomplete[x], of.incomplete[y]))
            for of, x, y in tests
        ]
    )
    improvements: dict[str, list[Improvement]] = {of.name: [] for of in comparisons}
    for (of, x, y), p in zip(tests, adjusted, strict=True):
        if len(of.scores) <= _ALL_PAIRS_UP_TO or x == next(iter(of.scores)):
            scores = of.scores[x], of.scores[y]
            least = min(1.0, len(tests) * statistics.least_p(*scores))
            improvements[of.name].append(Improvement(x, y, statistics.probability_of_improvement(*scores), p, least))
    return [replace(of, improvements=tuple(improvements[of.name])) for of in comparisons]
