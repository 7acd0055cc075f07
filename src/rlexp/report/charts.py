"""Charts of lines over frames for a page: drawn here, so that they need no script; ``page.js`` adds hover and switches.

A script shows the value under the pointer from ``Path.values``, and hides the lines of a group that is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from rlexp.report.runs import Floats

WIDTH, HEIGHT = 480, 270  # units of the drawing, in which text has a size of 12
_TOP, _RIGHT, _BOTTOM = 10, 14, 36
_DIGIT = 8.6  # width of one at the size of 15 that it has on a phone
_MOST_POINTS = 500
_COLOURS, _DASHES = 8, 4


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: shown on hover.
        x: ``[points]``, frames, increasing.
        y: ``[points]``.
        group: lines of one group have one colour and are switched together.
        thin: whether it is one run of several, behind the group's line.
        low: ``[points]``, lower edge of a band around it; None without one.
        high: ``[points]``, upper edge.
    """

    name: str
    x: Floats
    y: Floats
    group: int = 0
    thin: bool = False
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over frames.

    Attributes:
        title: what is shown.
        unit: of the values.
        lines: the lines, those in front last.
        groups: their names for the legend; empty where there is none.
        off: groups that are switched off at first.
        thresholds: values marked by a line across, where they are near the lines.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    groups: Mapping[int, str] = field(default_factory=dict)
    off: frozenset[int] = frozenset()
    thresholds: Sequence[float] = ()


@dataclass(frozen=True)
class Path:
    """A line as it is drawn: ``points`` of a polyline in the drawing's units, ``values`` as ``frames value;...``."""

    name: str
    group: int
    kind: str
    points: str
    values: str = ""

    @property
    def style(self) -> str:
        """The classes of its group."""
        return style(self.group)


@dataclass(frozen=True)
class Drawn:
    """A chart as it is drawn; positions are in the drawing's units.

    Attributes:
        chart: what is drawn.
        left: where the y-axis is.
        x_ticks: position to label.
        y_ticks: position to label.
        bands: behind the lines.
        paths: the lines.
        thresholds: position to label.
        distant: the thresholds that are not drawn, in words; empty where there are none.
        every: one of so many points is drawn, where there are too many.
    """

    chart: Chart
    left: float
    x_ticks: Mapping[float, str]
    y_ticks: Mapping[float, str]
    bands: Sequence[Path]
    paths: Sequence[Path]
    thresholds: Mapping[float, str]
    distant: str
    every: int
    width: int = field(default=WIDTH)
    height: int = field(default=HEIGHT)
    bottom: int = field(default=HEIGHT - _BOTTOM)
    right: int = field(default=WIDTH - _RIGHT)


def style(group: int) -> str:
    """The classes of a group: its colour and, after eight of them, its dashes."""
    return f"c{group % _COLOURS} d{group // _COLOURS % _DASHES}"


def drawn(chart: Chart) -> Drawn:
    """Lay a chart out; it has a point at least."""
    every = max(1, max(-(-len(line.x) // _MOST_POINTS) for line in chart.lines))
    low_x, high_x = _range([line.x for line in chart.lines])
    edges = [edge for line in chart.lines for edge in (line.y, line.low, line.high) if edge is not None]
    marked = [threshold for threshold in chart.thresholds if is_near(threshold, edges)]
    distant = [threshold for threshold in chart.thresholds if threshold not in marked]
    low, high = _range([*edges, np.array(marked)], margin=0.05)
    y_labels = {tick: f"{tick:,.6g}" for tick in _ticks(low, high)}
    left = 12 + _DIGIT * max(map(len, y_labels.values()))

    def across(x: Floats | float) -> Floats:
        return left + (np.asarray(x) - low_x) / (high_x - low_x) * (WIDTH - _RIGHT - left)

    def up(y: Floats | float) -> Floats:
        return HEIGHT - _BOTTOM - (np.asarray(y) - low) / (high - low) * (HEIGHT - _BOTTOM - _TOP)

    paths, bands = [], []
    for line in chart.lines:
        kept = np.unique([*range(0, len(line.x), every), len(line.x) - 1])
        if len(kept) == 1:
            kept = kept.repeat(2)  # a line of one point is drawn as a dot
        x, y = line.x[kept], line.y[kept]
        values = ";".join(f"{frames:.0f} {value:.6g}" for frames, value in zip(x, y, strict=True))
        kind = "thin" if line.thin else "line"
        paths.append(Path(line.name, line.group, kind, _points(across(x), up(y)), values))
        if line.low is not None and line.high is not None:
            there, back = (across(x), up(line.high[kept])), (across(x[::-1]), up(line.low[kept][::-1]))
            bands.append(Path(line.name, line.group, "band", f"{_points(*there)} {_points(*back)}"))
    engineer = EngFormatter(sep="")
    return Drawn(
        chart,
        left,
        {float(across(tick)): engineer(tick) for tick in _ticks(low_x, high_x)},
        {float(up(tick)): text for tick, text in y_labels.items()},
        bands,
        paths,
        {float(up(threshold)): threshold_label(threshold) for threshold in marked},
        ", ".join(f"{threshold_label(threshold)} is not on this scale" for threshold in distant),
        every,
    )


def is_near(threshold: float, values: Sequence[Floats]) -> bool:
    """Whether an axis can show a threshold and still tell the values apart: it is within their range of them."""
    low, high = _range(values)
    return 2 * low - high <= threshold <= 2 * high - low


def threshold_label(threshold: float) -> str:
    """What a threshold is called in plots."""
    return f"threshold {threshold:,.10g}"


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{across:.1f},{up:.1f}" for across, up in zip(x, y, strict=True))


def _range(values: Sequence[Floats], margin: float = 0.0) -> tuple[float, float]:
    """From the lowest to the highest value, and a margin; never empty."""
    pooled = np.concatenate(values)
    low, high = float(pooled.min()), float(pooled.max())
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):  # the same but for rounding
        span = abs(high) or 1.0
        return low - span / 2, high + span / 2
    return low - margin * span, high + margin * span


def _ticks(low: float, high: float) -> list[float]:
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
