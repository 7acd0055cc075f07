"""Draw the evaluation returns of several runs over frames, one line a run.

usage: python scripts/learning_curves.py OUT.png TITLE SOLVED RUN_DIR...

SOLVED is the return at which a line is drawn. Runs of several policies get one colour each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlexp.loggers.local import read_metrics


def main(out: str, title: str, solved: str, *run_dirs: str) -> None:
    """Read the runs and write the picture."""
    figure = Figure(figsize=(7.2, 3.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    runs = sorted((policy_of(Path(run)), seed_of(Path(run)), Path(run)) for run in run_dirs)
    policies = {policy: f"C{i}" for i, policy in enumerate(dict.fromkeys(policy for policy, _, _ in runs))}
    for i, (policy, seed, run_dir) in enumerate(runs):
        several = len(policies) > 1
        rows = [row for row in read_metrics(run_dir) if "eval/return" in row]
        points = [(row["frames"], row["eval/return"]) for row in rows]
        label = f"{policy}, seed {seed}" if several else f"seed {seed}"
        color = policies[policy] if several else f"C{i}"
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, linewidth=1.5, label=label)
    axes.axhline(float(solved), color="0.6", linewidth=1, linestyle="--", label="solved")
    axes.set_title(title)
    axes.set_xlabel("simulator frames")
    axes.set_ylabel("mean return of deterministic episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(out)


def seed_of(run_dir: Path) -> int:
    """What everything random in a run followed from."""
    seed: int = json.loads((run_dir / "metadata.json").read_text())["seed"]
    return seed


def policy_of(run_dir: Path) -> str:
    """The class of a run's policy, without its ending."""
    target: str = yaml.safe_load((run_dir / "config.yaml").read_text())["policy"]["_target_"]
    return target.rpartition(".")[2].removesuffix("Config").removesuffix("Policy")


if __name__ == "__main__":
    main(*sys.argv[1:])
