"""The pictures of a report. Every function draws one and gives it as PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from rlexp.report import statistics
from rlexp.report.results import Comparison, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 6
"""Lines in one picture; beyond that they cannot be told apart."""

# Okabe and Ito's colours, which the colour-blind tell apart too, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
_LINES = ("-", "--", "-.", ":")
SHADES = colormaps["viridis_r"]

Style = Mapping[str, Any]


def styles(variants: Iterable[str]) -> dict[str, Style]:
    """A colour and a line for each variant, the same in every picture of a report."""
    return {
        variant: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _LINES[i // len(_COLOURS) % len(_LINES)]}
        for i, variant in enumerate(variants)
    }


def learning_curves(environment: str, results: Sequence[Result], look: Mapping[str, Style]) -> bytes:
    """Interquartile mean of ``eval/return`` over frames with its pointwise 95% interval, one line a group."""
    figure, axes = canvas(f"Learning curves: {environment}", "simulator frames", "evaluation return")
    for result in best_first(results)[:SHOWN]:
        runs = result.group.runs
        frames, values = statistics.on_common_frames([run.frames for run in runs], [run.returns for run in runs])
        middle, low, high = statistics.band([values], statistics.interquartile_mean)
        style = look[result.group.variant]
        seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
        label = f"{result.group.variant} ({seeds})" if result.group.variant else seeds
        marker = "o" if len(frames) <= 30 else None
        axes.plot(frames, middle, **style, linewidth=1.8, marker=marker, markersize=3, label=_wrapped(label))
        axes.fill_between(frames, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for threshold in sorted({result.threshold for result in results if result.threshold is not None}):
        axes.axhline(threshold, color="0.45", linewidth=1, linestyle=(0, (4, 3)), label=f"threshold {threshold:,.10g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter("{x:,.10g}")
    return png(figure)


def performance_profile(comparison: Comparison, look: Mapping[str, Style]) -> bytes:
    """Fraction of runs that score above each value, with its pointwise 95% interval (Agarwal et al. 2021)."""
    unit = "normalized score" if comparison.normalized else "final evaluation return"
    figure, axes = canvas(f"Performance profile: {comparison.name}", f"{unit} (τ)", "fraction of runs above τ")
    shown = list(comparison.scores.items())[:SHOWN]
    pooled = np.concatenate([scores for _, sample in shown for scores in sample])
    margin = 0.03 * (np.ptp(pooled) or 1.0)
    thresholds = np.linspace(pooled.min() - margin, pooled.max() + margin, 201)
    for variant, sample in shown:
        middle, low, high = statistics.band(statistics.above(sample, thresholds), statistics.mean_of_strata)
        axes.plot(thresholds, middle, **look[variant], linewidth=1.8, label=_wrapped(variant))
        axes.fill_between(thresholds, low, high, color=look[variant]["color"], alpha=0.15, linewidth=0)
    axes.set_ylim(-0.02, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter("{x:,.10g}")
    return png(figure)


def probability_of_improvement(comparison: Comparison, look: Mapping[str, Style]) -> bytes:
    """Chance that a run of X scores higher than one of Y, with its 95% interval; one bar a pair."""
    pairs = comparison.improvements[: 2 * SHOWN]
    against_one = len(pairs) > 1 and len({pair.x for pair in pairs}) == 1
    labels = [
        _wrapped(pair.y, 46) if against_one else f"{_wrapped(pair.x, 46)}\nvs {_wrapped(pair.y, 43)}" for pair in pairs
    ]
    lines = sum(label.count("\n") + 2 for label in labels)
    axis = f"P(X > Y), where X is {pairs[0].x}" if against_one else "P(X > Y)"
    figure, axes = canvas(f"Probability of improvement: {comparison.name}", _wrapped(axis, 60), "", 1.3 + 0.17 * lines)
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
    return png(figure)


def parallel_coordinates(environment: str, results: Sequence[Result]) -> bytes:
    """One line a group through its settings to its interquartile mean, which colours it; the best on top."""
    keys = list(results[0].group.settings)
    figure, axes = canvas(f"Settings and result: {environment}", "", "", 4.6)
    scores = [result.iqm.value for result in results]
    low, span = min(scores), (max(scores) - min(scores)) or 1.0
    scales = [_places([result.group.settings[key] for result in results]) for key in keys]
    for rank, result in enumerate(reversed(best_first(results))):
        # Lines through the same value run side by side, in order of their results; on one another they would hide.
        aside = 0.09 * (rank / max(len(results) - 1, 1) - 0.5)
        heights = [scale[str(result.group.settings[key])] + aside for key, scale in zip(keys, scales, strict=True)]
        share = (result.iqm.value - low) / span
        outline = smooth([*heights, share])
        axes.add_patch(PathPatch(outline, facecolor="none", edgecolor=SHADES(share), linewidth=1.7, alpha=0.9))
    box = {"facecolor": "white", "edgecolor": "0.8", "linewidth": 0.6, "boxstyle": "round,pad=0.25"}
    for place, scale in enumerate(scales):
        axes.axvline(place, color="0.25", linewidth=1)
        for text, height in scale.items():
            short = textwrap.shorten(text, 22, placeholder="…")
            axes.text(place, height, short, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.axvline(len(keys), color="0.25", linewidth=1)
    axes.yaxis.tick_right()
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, low + span) if low <= tick <= low + span]
    axes.set_yticks([(tick - low) / span for tick in ticks], [f"{tick:,.10g}" for tick in ticks], fontsize=9)
    axes.set_xticks(
        range(len(keys) + 1), [*(key.replace(".", ".\n", 1) for key in keys), "IQM of final\nreturn"], fontsize=9
    )
    axes.set_xlim(-0.2, len(keys))
    axes.set_ylim(-0.08, 1.08)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    return png(figure)


def best_first(results: Iterable[Result]) -> list[Result]:
    """Highest interquartile mean first."""
    return sorted(results, key=lambda result: (-result.iqm.value, result.group.name))


def canvas(title: str, x: str, y: str, height: float = 4.2) -> tuple[Figure, Axes]:
    """An empty picture in the look that all have; ``height`` in inches."""
    # The object interface: pyplot would keep every figure, and may look for a display.
    figure = Figure(figsize=(7.2, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12, pad=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The picture's bytes, with a legend below it where its lines have labels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = 1 if longest > 45 else min(len(labels), 2 if longest > 24 else 3)
        lines = sum(label.count("\n") + 1 for label in labels) / columns
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0.0, lines - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _wrapped(text: str, width: int = 80) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _places(values: Sequence[object]) -> dict[str, float]:
    """Where each distinct value stands on its axis, evenly from 0 to 1: numbers by size, then the rest by name."""
    numeric = {str(v): float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)}
    ordered = sorted(numeric, key=lambda text: numeric[text]) + sorted({str(v) for v in values} - numeric.keys())
    return {text: 0.5 if len(ordered) == 1 else i / (len(ordered) - 1) for i, text in enumerate(ordered)}


def smooth(heights: Sequence[float]) -> Outline:
    """A curve through the points ``(i, heights[i])``, level at each."""
    points, codes = [(0.0, heights[0])], [Outline.MOVETO]
    for i, (here, there) in enumerate(pairwise(heights)):
        points += [(i + 0.45, here), (i + 0.55, there), (i + 1.0, there)]
        codes += [Outline.CURVE4] * 3
    return Outline(points, codes)
