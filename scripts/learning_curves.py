"""Draw the evaluation returns of several runs over frames, one line a run.

usage: python scripts/learning_curves.py OUT.png RUN_DIR...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlexp.loggers.local import read_metrics


def main(out: str, *run_dirs: str) -> None:
    """Read the runs and write the picture."""
    figure = Figure(figsize=(7.2, 3.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    seeds = {Path(run): json.loads((Path(run) / "metadata.json").read_text())["seed"] for run in run_dirs}
    for run_dir, seed in sorted(seeds.items(), key=lambda item: item[1]):
        rows = [row for row in read_metrics(run_dir) if "eval/return" in row]
        points = [(row["frames"], row["eval/return"]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=f"seed {seed}")
    axes.axhline(9100, color="0.6", linewidth=1, linestyle="--", label="solved (Gymnasium's threshold)")
    axes.set_title("Inverted double pendulum: mean return of 10 deterministic episodes")
    axes.set_xlabel("simulator frames")
    axes.set_ylabel("return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
