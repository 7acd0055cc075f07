"""The four pictures of a training, drawn from its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rlexp.loggers import Row


@dataclass(frozen=True)
class Plot:
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


PICTURES = (
    Plot("training_reward", "train/reward", "Training reward (average)", "reward per step"),
    Plot("training_step_count", "train/step_count", "Max step count (training)", "steps"),
    Plot("test_return", "eval/return", "Return (test)", "mean return per episode", marked=True),
    Plot("test_step_count", "eval/step_count", "Max step count (test)", "steps", marked=True),
)


def draw(picture: Plot, rows: Sequence[Row], axes: Axes) -> None:
    """Draw one picture onto axes."""
    from matplotlib.ticker import EngFormatter

    points = [(row["frames"], row[picture.metric]) for row in rows if picture.metric in row]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color="tab:blue" if not picture.marked else "tab:orange",
        linewidth=1.6,
        marker="o" if picture.marked else None,
        markersize=4,
    )
    axes.set_title(picture.title)
    axes.set_xlabel("simulator frames")
    axes.set_ylabel(picture.unit)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.spines[["top", "right"]].set_visible(False)


def plot_training(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the tutorial's four pictures, and one with all four, as PNG.

    Args:
        rows: the rows of its ``metrics.jsonl``.
        folder: where the pictures go; made if it is not there.

    Returns:
        The files written.
    """
    # The object interface: pyplot would keep every figure, and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    written = []
    for picture in PICTURES:
        figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
        draw(picture, rows, figure.add_subplot())
        FigureCanvasAgg(figure).print_png(str(path := folder / f"{picture.file}.png"))
        written.append(path)
    overview = Figure(figsize=(11, 7.4), dpi=110, layout="constrained")
    for picture, axes in zip(PICTURES, overview.subplots(2, 2).flat, strict=True):
        draw(picture, rows, axes)
    FigureCanvasAgg(overview).print_png(str(path := folder / "overview.png"))
    return [*written, path]
