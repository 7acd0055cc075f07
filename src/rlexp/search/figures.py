"""The plots of a search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from rlexp.plots import default_style, label, new_axes, score_colour, smooth_curve, to_png

if TYPE_CHECKING:
    from optuna import Study

_SCORE = "score (mean final evaluation)"


@default_style()
def draw(study: Study) -> dict[str, bytes]:
    """Every plot that the completed trials allow, as PNG, by its file name without the ending."""
    completed = study.get_trials(states=[TrialState.COMPLETE])
    if not completed:
        return {}
    found = {"history": history(study), "parallel_coordinates": parallel_coordinates(completed)}
    # Optuna's analysis compares the better trials with the others.
    if len(completed) >= 4 and len({trial.value for trial in completed}) > 1:
        found["importances"] = importances(study)
    return found


def history(study: Study) -> bytes:
    """The score of every trial, and the best so far."""
    figure, axes = new_axes("Optimisation history", "trial", _SCORE)
    completed = study.get_trials(states=[TrialState.COMPLETE])
    numbers, values = [trial.number for trial in completed], [_value(trial) for trial in completed]
    axes.step(numbers, list(itertools.accumulate(values, max)), where="post", color="#D55E00", label="best so far")
    axes.scatter(numbers, values, s=22, color="#0072B2", label="completed", zorder=3)
    pruned = [t for t in study.get_trials(states=[TrialState.PRUNED]) if t.intermediate_values]
    if pruned:
        last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
        axes.scatter([t.number for t in pruned], last, s=22, marker="x", color="0.5", label="pruned (last evaluation)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:,.10g}")
    return to_png(figure)


def importances(study: Study) -> bytes:
    """How much each setting distinguishes the better trials from the others (PED-ANOVA, Watanabe et al. 2023)."""
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    names = list(reversed(found))
    figure, axes = new_axes("Importance of each setting", "share", "", 1.2 + 0.35 * len(names))
    axes.barh([label(name) for name in names], [found[name] for name in names], height=0.6, color="#0072B2")
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    return to_png(figure)


def parallel_coordinates(completed: Sequence[FrozenTrial]) -> bytes:
    """One line per completed trial through its settings to its score, which colours it; the best is on top."""
    keys = list(completed[0].params)
    figure, axes = new_axes("Settings and score", "", "", 4.6)
    scores = [_value(trial) for trial in completed]
    scales = [*(_scale(completed[0].distributions[key]) for key in keys), _between(min(scores), max(scores))]
    rows = [[*(trial.params[key] for key in keys), score] for trial, score in zip(completed, scores, strict=True)]
    for row in sorted(rows, key=lambda row: row[-1]):
        heights = [scale.height(value) for scale, value in zip(scales, row, strict=True)]
        shade = score_colour(heights[-1])
        axes.add_patch(PathPatch(smooth_curve(heights), facecolor="none", edgecolor=shade, linewidth=1.6, alpha=0.9))
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    for place, scale in enumerate(scales):
        axes.axvline(place, color="0.25", linewidth=1)
        for text, height in scale.ticks:
            axes.text(place, height, label(text), ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    labels = [*(label(key.replace(".", ".\n", 1)) for key in keys), "score"]
    axes.set_xticks(range(len(scales)), labels, fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(scales) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    return to_png(figure)


@dataclass(frozen=True)
class _Scale:
    """An axis from 0 to 1.

    Attributes:
        height: the height of a value.
        ticks: labels, and the height of each.
    """

    height: Callable[[Any], float]
    ticks: Sequence[tuple[str, float]]


def _scale(distribution: BaseDistribution) -> _Scale:
    if isinstance(distribution, CategoricalDistribution):
        places = {choice: i / (len(distribution.choices) - 1) for i, choice in enumerate(distribution.choices)}
        return _Scale(places.__getitem__, [(str(choice), place) for choice, place in places.items()])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _between(distribution.low, distribution.high, log=distribution.log)


def _between(low: float, high: float, *, log: bool = False) -> _Scale:
    to: Callable[[float], float] = math.log if log else float
    back: Callable[[float], float] = math.exp if log else float
    start, span = to(low), (to(high) - to(low)) or 1.0
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return _Scale(
        lambda value: (to(value) - start) / span, [(f"{back(start + share * span):.3g}", share) for share in shares]
    )


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return float(trial.value)
