"""The plots of a report, each a function that draws one and returns it as PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlexp.plots import frames_on_x, label, new_axes, score_colour, smooth_curve, to_png
from rlexp.report import charts, statistics
from rlexp.report.results import Comparison, Curve, Result

SHOWN = 6
"""Lines in one plot; more could not be distinguished."""

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
_LINES = ("-", "--", "-.", ":")
_WIDTH = 80  # characters in a line of a legend

Style = Mapping[str, Any]


def styles(variants: Iterable[str]) -> dict[str, Style]:
    """A colour and a line style for each variant, the same in every plot of a report."""
    return {
        variant: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i // len(_COLOURS) % len(_LINES)]}
        for i, variant in enumerate(variants)
    }


def learning_curves(environment: str, curves: Sequence[Curve], look: Mapping[str, Style]) -> bytes:
    """Interquartile mean of ``eval/return`` over frames with its pointwise 95% interval, one line per group."""
    figure, axes = new_axes(f"Learning curves: {environment}", "simulator frames", "evaluation return")
    for curve in curves[:SHOWN]:
        group = curve.result.group
        style = look[group.variant]
        seeds = "1 seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds"
        name = f"{group.variant} ({seeds})" if group.variant else seeds
        marker = "o" if len(curve.frames) <= 30 else None
        axes.plot(
            curve.frames, curve.middle, **style, linewidth=1.8, marker=marker, markersize=3, label=label(name, _WIDTH)
        )
        axes.fill_between(curve.frames, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0)
    for threshold in thresholds(curves):
        name = charts.threshold_label(threshold)
        if charts.is_near(threshold, [edge for curve in curves for edge in (curve.low, curve.high)]):
            axes.axhline(threshold, color="0.45", linewidth=1, linestyle=(0, (4, 3)), label=name)
        else:
            axes.plot([], [], " ", label=f"{name} is not on this scale")
    frames_on_x(axes)
    return to_png(figure)


def thresholds(curves: Iterable[Curve]) -> list[float]:
    """The returns to reach in one environment."""
    return sorted({curve.result.threshold for curve in curves if curve.result.threshold is not None})


def performance_profile(comparison: Comparison, look: Mapping[str, Style]) -> bytes:
    """Fraction of runs that score above each value, with its pointwise 95% interval (Agarwal et al. 2021)."""
    unit = "normalized score" if comparison.normalized else "final evaluation return"
    figure, axes = new_axes(f"Performance profile: {comparison.name}", f"{unit} (τ)", "fraction of runs above τ")
    shown = list(comparison.scores.items())[:SHOWN]
    pooled = np.concatenate([scores for _, sample in shown for scores in sample])
    margin = 0.03 * (np.ptp(pooled) or 1.0)
    thresholds = np.linspace(pooled.min() - margin, pooled.max() + margin, 201)
    for variant, sample in shown:
        middle, low, high = statistics.band(statistics.above(sample, thresholds), statistics.mean_of_strata)
        axes.plot(thresholds, middle, **look[variant], linewidth=1.8, label=label(variant, _WIDTH))
        axes.fill_between(thresholds, low, high, color=look[variant]["color"], alpha=0.15, linewidth=0)
    axes.set_ylim(-0.02, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter("{x:,.10g}")
    return to_png(figure)


def probability_of_improvement(comparison: Comparison, look: Mapping[str, Style]) -> bytes:
    """Probability that a run of X scores higher than one of Y, with its 95% interval; one bar per pair."""
    pairs = comparison.improvements[: 2 * SHOWN]
    against_one = len(pairs) > 1 and len({pair.x for pair in pairs}) == 1
    labels = [label(pair.y, 46) if against_one else f"{label(pair.x, 46)}\nvs {label(pair.y, 43)}" for pair in pairs]
    lines = sum(text.count("\n") + 2 for text in labels)
    axis = f"P(X > Y), where X is {pairs[0].x}" if against_one else "P(X > Y)"
    figure, axes = new_axes(
        f"Probability of improvement: {comparison.name}", textwrap.fill(axis, 60), "", 1.3 + 0.17 * lines
    )
    for row, pair in enumerate(pairs):
        estimate, colour = pair.probability, look[pair.y if against_one else pair.x]["color"]
        if estimate.low is not None and estimate.high is not None:
            axes.barh(row, estimate.high - estimate.low, left=estimate.low, height=0.5, color=colour, alpha=0.3)
        axes.plot([estimate.value] * 2, [row - 0.25, row + 0.25], color=colour, linewidth=3)
    axes.axvline(0.5, color="0.45", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(pairs)), labels, fontsize=8)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return to_png(figure)


def parallel_coordinates(environment: str, results: Sequence[Result]) -> bytes:
    """One line per group through its settings to its interquartile mean, which colours it; the best is on top."""
    keys = list(results[0].group.settings)
    figure, axes = new_axes(f"Settings and result: {environment}", "", "", 4.6)
    scores = [result.iqm.value for result in results]
    low, span = min(scores), (max(scores) - min(scores)) or 1.0
    scales = [_places([result.group.settings[key] for result in results]) for key in keys]
    for rank, result in enumerate(reversed(best_first(results))):
        # Lines through the same value run side by side, in order of their results; so that none hides another.
        offset = 0.09 * (rank / max(len(results) - 1, 1) - 0.5)
        heights = [scale[str(result.group.settings[key])] + offset for key, scale in zip(keys, scales, strict=True)]
        share = (result.iqm.value - low) / span
        outline = smooth_curve([*heights, share])
        axes.add_patch(PathPatch(outline, facecolor="none", edgecolor=score_colour(share), linewidth=1.7, alpha=0.9))
    box = {"facecolor": "white", "edgecolor": "0.8", "linewidth": 0.6, "boxstyle": "round,pad=0.25"}
    for place, scale in enumerate(scales):
        axes.axvline(place, color="0.25", linewidth=1)
        for text, height in scale.items():
            short = label(text if len(text) <= 22 else f"{text[:21]}…")
            axes.text(place, height, short, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.axvline(len(keys), color="0.25", linewidth=1)
    axes.yaxis.tick_right()
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, low + span) if low <= tick <= low + span]
    axes.set_yticks([(tick - low) / span for tick in ticks], [f"{tick:,.10g}" for tick in ticks], fontsize=9)
    axes.set_xticks(
        range(len(keys) + 1), [*(label(key.replace(".", ".\n", 1)) for key in keys), "IQM of final\nreturn"], fontsize=9
    )
    axes.set_xlim(-0.2, len(keys))
    axes.set_ylim(-0.08, 1.08)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    return to_png(figure)


def best_first(results: Iterable[Result]) -> list[Result]:
    """Highest interquartile mean first."""
    return sorted(results, key=lambda result: (-result.iqm.value, result.group.name))


def _places(values: Sequence[object]) -> dict[str, float]:
    """The height of each distinct value on its axis, evenly from 0 to 1: numbers by size, then the rest by name."""
    numeric = {str(v): float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)}
    ordered = sorted(numeric, key=lambda text: numeric[text]) + sorted({str(v) for v in values} - numeric.keys())
    return {text: 0.5 if len(ordered) == 1 else i / (len(ordered) - 1) for i, text in enumerate(ordered)}
