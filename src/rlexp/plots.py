"""The style that all plots share, and the four plots of a run."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlexp.files import write_bytes
from rlexp.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline


_LONGEST = 400  # characters of a label


@dataclass(frozen=True)
class TrainingPlot:
    """One metric over frames.

    Attributes:
        file: name of the PNG, without its ending.
        metric: the metric's name in ``metrics.jsonl``.
        title: what is shown.
        unit: label of the y-axis.
        marked: mark each point, for metrics that not every row has.
    """

    file: str
    metric: str
    title: str
    unit: str
    marked: bool = False


TRAINING_PLOTS = (
    TrainingPlot("training_reward", "train/reward", "Training reward (average)", "reward per step"),
    TrainingPlot("training_step_count", "train/step_count", "Max step count (training)", "steps"),
    TrainingPlot("test_return", "eval/return", "Return (test)", "mean return per episode", marked=True),
    TrainingPlot("test_step_count", "eval/step_count", "Max step count (test)", "steps", marked=True),
)


@contextmanager
def default_style() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever a ``matplotlibrc`` says; also a decorator.

    Labels are not written for LaTeX (``text.usetex``), and a file in the current folder may be a stranger's.
    """
    from matplotlib import style

    with style.context("default"):
        yield


@default_style()
def plot_training(rows: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
    """Write the tutorial's four plots, and one figure with all four, as PNG.

    Args:
        rows: the rows of its ``metrics.jsonl``.
        folder: where the plots go; made if it is not there.

    Returns:
        The files written.
    """
    from matplotlib.image import imsave

    if folder.is_symlink():
        raise OSError(f"{folder} is a link, and what is written would go elsewhere: remove it")
    folder.mkdir(exist_ok=True)
    images = {}
    for plot in TRAINING_PLOTS:
        figure = new_figure(6.4, 4.2, dpi=120)
        _draw(plot, rows, figure.add_subplot())
        images[plot.file] = _pixels(figure)
    one, two, three, four = images.values()
    images["overview"] = np.block([[[one], [two]], [[three], [four]]])  # drawing takes longer than all else at the end
    files = {folder / f"{name}.png": image for name, image in images.items()}
    for file, image in files.items():
        imsave(content := io.BytesIO(), image, format="png")
        write_bytes(file, content.getvalue())
    return list(files)


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """The figure drawn: RGBA ``[height, width, 4]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _draw(plot: TrainingPlot, rows: Sequence[Mapping[str, float]], axes: Axes) -> None:
    points = [(row["frames"], row[plot.metric]) for row in rows if plot.metric in row]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color="tab:blue" if not plot.marked else "tab:orange",
        linewidth=1.6,
        marker="o" if plot.marked else None,
        markersize=4,
    )
    style_axes(axes, plot.title, "simulator frames", plot.unit)
    frames_on_x(axes)


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure; sizes in inches."""
    # The object interface: pyplot would keep every figure, and may look for a display. Imported here, because training
    # needs matplotlib only at its end.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def new_axes(title: str, x: str, y: str, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure of one plot, in the common style; ``height`` in inches."""
    figure = new_figure(7.2, height)
    axes = figure.add_subplot()
    style_axes(axes, title, x, y)
    return figure, axes


def style_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Titles, grid and spines in the common style."""
    axes.set_title(label(title, 80), fontsize=12, pad=10)
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def frames_on_x(axes: Axes) -> None:
    """Frames with SI prefixes (100k) on the x-axis, plain numbers on the y-axis."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter("{x:,.10g}")


def label(text: str, width: int | None = None) -> str:
    """Text as matplotlib should draw it: printable, not parsed as a formula, broken into lines of ``width``."""
    text = printable(text, keep="\n")
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    if width is not None:
        text = textwrap.fill(text, width, break_on_hyphens=False)
    return text.replace("$", r"\$")


def smooth_curve(heights: Sequence[float]) -> Outline:
    """A curve through the points ``(i, heights[i])``, level at each."""
    from matplotlib.path import Path as Outline

    points, codes = [(0.0, heights[0])], [Outline.MOVETO]
    for i, (here, there) in enumerate(pairwise(heights)):
        points += [(i + 0.45, here), (i + 0.55, there), (i + 1.0, there)]
        codes += [Outline.CURVE4] * 3
    return Outline(points, codes)


def score_colour(share: float) -> tuple[float, ...]:
    """The colour of a score, from 0, the lowest, to 1, the highest."""
    from matplotlib import colormaps

    colour: tuple[float, ...] = colormaps["viridis_r"](share)
    return colour


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, with a legend below it where its only plot has labelled lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = 1 if longest > 45 else min(len(labels), 2 if longest > 24 else 3)
        lines = sum(text.count("\n") + 1 for text in labels) / columns
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0.0, lines - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
