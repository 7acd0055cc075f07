"""The learning tables: runs the presets over seeds, keeps their evaluations as CSV, writes a table and a figure.

    python benchmarks/learning.py                                        Gymnasium's MuJoCo tasks, seeds 0 to 9
    python benchmarks/learning.py --suite dm_control --seeds 0-4         another suite
    python benchmarks/learning.py --tasks hopper ant --workers 2         tasks of the suite
    python benchmarks/learning.py --no-run                               only table and figure, of the results there are
    python benchmarks/learning.py --random                               measures random actions, into random.csv

A command that was stopped or killed goes on where it was when it is given again. Runs whose results are there already,
with the same settings, are not repeated; with other settings they are refused. Each run has one core.
A task whose preset was changed after some of the seeds had run has the next ten in their place.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
import yaml

from rlexp.config import NO_RESULTS, flat, is_under
from rlexp.experiment import load_config, read_config
from rlexp.files import write_text
from rlexp.plots import frames_on_x, new_figure, style_axes, to_png
from rlexp.report import load_runs, statistics
from rlexp.report.runs import Floats
from rlexp.runs.stops import Stopped
from rlexp.sweeps import SweepDir, run_jobs
from rlexp.sweeps.folder import COMPLETED

HERE = Path(__file__).parent
SUITES = {
    "mujoco": (
        *("inverted_pendulum", "inverted_double_pendulum", "reacher", "pusher", "swimmer", "hopper"),
        *("walker2d", "half_cheetah", "ant", "humanoid", "humanoid_standup"),
    ),
    "gymnasium": (
        *("cartpole", "acrobot", "pendulum", "mountain_car_continuous"),
        *("lunar_lander", "lunar_lander_continuous", "bipedal_walker"),
    ),
    "dm_control": ("cartpole_swingup", "finger_spin", "cheetah_run", "walker_walk", "walker_run", "hopper_hop"),
}
"""The tasks of each table; those of the first have returns of random actions beside them, and aggregates."""
END = "<!-- end of what benchmarks/learning.py writes -->"
RESEEDED = {"ant": 10, "half_cheetah": 10, "hopper": 10, "humanoid": 40, **dict.fromkeys(SUITES["dm_control"], 10)}
"""By how much the seeds of a task are shifted whose preset was changed after some of those before had run."""
_COLUMNS = ("seed", "frames", "seconds", "return")


class Curve(NamedTuple):
    """The evaluations of one finished run, each array ``[evaluations]``.

    Attributes:
        frames: simulator frames before each.
        seconds: of collection and update until then.
        returns: mean return of its episodes; the last is the run's result.
    """

    frames: Floats
    seconds: Floats
    returns: Floats


Curves = dict[int, Curve]
"""By seed."""


def preset(task: str) -> list[str]:
    """What a task is trained with, as after ``rlexp-train``."""
    if task in SUITES["dm_control"]:
        domain, _, name = task.partition("_")
        return ["experiment=dm_control", f"env.domain={domain}", f"env.task={name}", "logger=none"]
    return [f"experiment={task}", "logger=none"]


def mark(suite: str) -> str:
    """The line of a page that the table of a suite comes after."""
    return f"<!-- written by benchmarks/learning.py --suite {suite} -->"


def seeds_of(task: str, seeds: Sequence[int]) -> list[int]:
    """The seeds that a task has in place of ``seeds``."""
    return [seed + RESEEDED.get(task, 0) for seed in seeds]


class Results:
    """A folder with the evaluations of every finished run, ``<task>.csv``, and their settings, ``<task>.yaml``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, task: str) -> Curves:
        """The curves of a task; empty where there are none."""
        path = self.folder / f"{task}.csv"
        if not path.exists():
            return {}
        rows: dict[int, list[list[float]]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.setdefault(int(row["seed"]), []).append([float(row[name]) for name in _COLUMNS[1:]])
        return {seed: Curve(*np.array(points).T) for seed, points in sorted(rows.items())}

    def add(self, task: str, curves: Curves, settings: Mapping[str, Any]) -> None:
        """Write the curves of more seeds beside those that are there, which have the same settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [",".join(_COLUMNS)]
        for seed, curve in sorted((self.read(task) | curves).items()):
            lines += [f"{seed},{f:.0f},{s:.1f},{r!r}" for f, s, r in np.stack(curve, -1).tolist()]
        write_text(self.folder / f"{task}.yaml", yaml.safe_dump(dict(settings), sort_keys=False))
        write_text(self.folder / f"{task}.csv", "\n".join(lines) + "\n")

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse to mix the results of a task with those of other settings.

        Raises:
            ValueError: names the settings that differ.
        """
        for task, now in settings.items():
            path = self.folder / f"{task}.yaml"
            if path.exists():
                saved = read_config(yaml.safe_load(path.read_text(encoding="utf-8"))).to_dict()  # by today's names
                before, after = _decisive(saved), _decisive(now)
                if changed := [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]:
                    raise ValueError(f"{path} has other settings ({', '.join(sorted(changed))}): move it and its CSV.")


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(settings) if not is_under(key, NO_RESULTS)}


def train(sweep: SweepDir, jobs: Sequence[Sequence[str]], workers: int) -> bool:
    """Run jobs as one sweep, or go on with those that a sweep holds already; whether every one finished.

    Raises:
        Stopped: a signal came; the running jobs are saved.
    """
    jobs = sweep.plan().jobs if sweep.planned else jobs
    if not jobs:
        return True
    os.environ["OMP_NUM_THREADS"] = "1"  # the same sums, and the same cost, whatever the machine and the workers
    launcher = ["launcher=joblib", f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []
    ended = run_jobs(sweep.path, jobs, hydra=launcher)
    for job in ended:
        if job.error is not None:
            print(f"job {job.number} failed ({' '.join(job.overrides)}): {job.error}", file=sys.stderr)
    return all(job.status == COMPLETED for job in ended)


def collect(sweep: SweepDir, results: Results, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the runs of a sweep that have finished to the results of their tasks."""
    finished = [run for run in load_runs([sweep.path]) if run.counted] if sweep.planned else []
    for task in settings:
        runs = [run for run in finished if run.settings["env.name"] == task]
        curves = {run.seed: Curve(run.frames, run.seconds, run.returns) for run in runs if run.seed is not None}
        if curves:
            results.add(task, curves, settings[task])


def published() -> dict[str, list[dict[str, str]]]:
    """What others have published for each task, the rows of ``published.csv``; the first is the one to compare with."""
    found: dict[str, list[dict[str, str]]] = {}
    with (HERE / "published.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["task"], []).append(row)
    return found


def measure_random(tasks: Sequence[str], episodes: int) -> None:
    """Write the returns of uniformly random actions to ``random.csv``; episode i, and its actions, have seed i."""
    rows = [",".join(("task", "score", "spread", "episodes", "seeds", "env", "versions"))]
    versions = f"gymnasium {gymnasium.__version__}; mujoco {mujoco.__version__}"
    for task in tasks:
        settings = load_config(preset(task)).to_dict()["env"]
        env = gymnasium.make(settings["id"], **settings["kwargs"])
        returns = np.array([_random_return(env, seed) for seed in range(episodes)])
        spread = f"{returns.std(ddof=1):.6g} s.d."
        rows.append(f"{task},{returns.mean():.6g},{spread},{episodes},0-{episodes - 1},{settings['id']},{versions}")
    write_text(HERE / "random.csv", "\n".join(rows) + "\n")


def _random_return(env: gymnasium.Env[Any, Any], seed: int) -> float:
    env.reset(seed=seed)
    env.action_space.seed(seed)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, ended = total + float(reward), terminated or truncated
    return total


def scale() -> dict[str, tuple[float, float]]:
    """Task to the returns whose normalised scores are 0 and 1: of random actions, and the best published."""
    with (HERE / "random.csv").open(newline="", encoding="utf-8") as file:
        zeros = {row["task"]: float(row["score"]) for row in csv.DictReader(file)}
    best = {task: max(float(row["score"]) for row in rows) for task, rows in published().items()}
    return {task: (zero, best[task]) for task, zero in zeros.items()}


def aggregates(results: Results, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: aggregates of normalised scores over the tasks in which every seed has finished, if there are two.

    They are `rlexp.report.statistics.AGGREGATES` and, averaged over tasks, the share of runs at the best published
    return or above, each with its interval.
    """
    found = _normalized(results, tasks, seeds)
    if len(found) < 2:
        return ""
    sample = list(found.values())
    reached = statistics.estimate([(scores >= 1).astype(float) for scores in sample], statistics.mean_of_strata)
    estimates = {**statistics.aggregates(sample), "runs at 1 or above": reached}
    left_out = ", ".join(task for task in tasks if task not in found)
    lines = [
        f"Over {len(found)} tasks and all {len(seeds)} seeds, of scores from 0, random actions, to 1, the table's best",
        f"published return{f'; without {left_out}, where seeds are missing' if left_out else ''}:",
        "",
        f"| {' | '.join(estimates)} |",
        "|" + " --- |" * len(estimates),
        f"| {' | '.join(interval(one, '{:.2f}'.format) for one in estimates.values())} |",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _normalized(results: Results, tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, Floats]:
    """The normalised scores of every seed, ``[seeds]``, of the tasks in which every seed has finished."""
    found, ends = {}, scale()
    for task in tasks:
        curves, wanted = results.read(task), seeds_of(task, seeds)
        if task in ends and all(seed in curves for seed in wanted):
            found[task] = statistics.normalized(np.array([curves[seed].returns[-1] for seed in wanted]), *ends[task])
    return found


def _cited(row: Mapping[str, str]) -> str:
    spread = f" ± {row['spread']}" if row["spread"] else ""
    of = ", ".join(row[key] for key in ("algorithm", "version", "frames", "seeds", "kind") if row[key])
    return f"{shown(float(row['score']))}{spread} ({of}) [{row['source']}]({row['url']})"


def shown(value: float) -> str:
    """A return with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}"


def table(results: Results, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: a row a task, seeds without a finished run named as missing, and the `aggregates` below.

    Mean and interquartile mean are over the seeds' last evaluations, each with its 95% interval, a percentile bootstrap
    over seeds (`rlexp.report.statistics`). Seconds of collection and update are the median over seeds.
    """
    others = published()
    rows = ["| task | mean | IQM | every seed | frames | seconds | published |", "|" + " --- |" * 7]
    for task in tasks:
        wanted = seeds_of(task, seeds)
        curves = {seed: curve for seed, curve in results.read(task).items() if seed in wanted}
        missing = [str(seed) for seed in wanted if seed not in curves]
        cells = [task, *[""] * 5, "<br>".join(map(_cited, others.get(task, [])))]
        if curves:
            scores = np.array([curve.returns[-1] for curve in curves.values()])
            kinds = (statistics.mean, statistics.interquartile_mean)
            cells[1:3] = [interval(statistics.estimate([scores], kind)) for kind in kinds]
            cells[3] = ", ".join(map(shown, scores))
            cells[4] = ", ".join(f"{frames:,.0f}" for frames in sorted({c.frames[-1] for c in curves.values()}))
            cells[5] = f"{np.median([curve.seconds[-1] for curve in curves.values()]):,.0f}"
        if missing:
            cells[3] += f"{'; ' if curves else ''}missing: {', '.join(missing)}"
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n" + aggregates(results, tasks, seeds)


def interval(found: statistics.Estimate, form: Callable[[float], str] = shown) -> str:
    """An estimate with its interval, where it has one."""
    if found.low is None or found.high is None:
        return form(found.value)
    return f"{form(found.value)} [{form(found.low)}, {form(found.high)}]"


def figure(results: Results, tasks: Sequence[str], seeds: Sequence[int]) -> bytes:
    """PNG: for each task every seed's curve, their interquartile mean, and dashed the first published number.

    Where there are aggregates, the last panel is the performance profile: the share of runs above each score.
    """
    columns, others = 4, published()
    scores = _normalized(results, tasks, seeds)
    rows = -(-(len(tasks) + (len(scores) > 1)) // columns)
    drawing = new_figure(3.4 * columns, 2.6 * rows, dpi=110)
    for number, task in enumerate(tasks, start=1):
        axes = drawing.add_subplot(rows, columns, number)
        curves = [curve for seed, curve in results.read(task).items() if seed in seeds_of(task, seeds)]
        for curve in curves:
            axes.plot(curve.frames, curve.returns, color="C0", linewidth=0.8, alpha=0.4)
        if curves:
            frames, returns = statistics.on_common_frames([c.frames for c in curves], [c.returns for c in curves])
            axes.plot(frames, statistics.interquartile_mean(returns), color="C0", linewidth=2)
        if task in others:
            axes.axhline(float(others[task][0]["score"]), color="0.4", linewidth=1, linestyle="--")
        style_axes(axes, f"{task}, {len(curves)} seeds", "", "")
        frames_on_x(axes)
    if len(scores) > 1:
        axes = drawing.add_subplot(rows, columns, len(tasks) + 1)
        grid = np.linspace(0, max(1.2, *(one.max() for one in scores.values())), 121)
        middle, low, high = statistics.band(statistics.above(list(scores.values()), grid), statistics.mean_of_strata)
        axes.plot(grid, middle, color="C0", linewidth=2)
        axes.fill_between(grid, low, high, color="C0", alpha=0.15, linewidth=0)
        axes.axvline(1, color="0.4", linewidth=1, linestyle="--")
        style_axes(axes, f"runs above a score, {len(scores)} tasks", "", "")
    return to_png(drawing)


def insert(page: Path, text: str, begin: str, end: str = END) -> None:
    """Put a table where the page has its marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"{begin}\n")
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{page} has no lines '{begin}' and '{end}'.")
    write_text(page, f"{before}{begin}\n{text}{end}{after}")


def numbers(text: str) -> Iterator[int]:
    """``3`` or ``0-9``."""
    first, _, last = text.partition("-")
    yield from range(int(first), int(last or first) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and write results, table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="mujoco", help="the tasks of a table")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="a part of the suite")
    parser.add_argument("--seeds", nargs="+", default=["0-9"], help="as 0-9, or 0 1 2")
    parser.add_argument("--workers", type=int, default=1, help="runs at once")
    parser.add_argument("--runs", type=Path, default=Path("outputs/learning"), help="folder of the sweeps")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the CSV files")
    parser.add_argument("--page", type=Path, help="page that the table is written into; without it, it is printed")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--no-run", action="store_true", help="only table and figure, of the results there are")
    parser.add_argument("--random", action="store_true", help="only measure random actions, 100 episodes a task")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run")
    given = parser.parse_args(arguments)
    tasks = given.tasks or SUITES[given.suite]
    if unknown := set(tasks) - set(SUITES[given.suite]):
        parser.error(f"{', '.join(sorted(unknown))}: the suite {given.suite} has {', '.join(SUITES[given.suite])}")
    seeds = sorted({seed for text in given.seeds for seed in numbers(text)})
    results = Results(given.results)
    if given.random:
        measure_random(SUITES["mujoco"], 100)
        return 0
    if given.set and given.results == HERE / "results":
        parser.error("--set needs --results: its runs are not the presets'")
    settings = {task: load_config([*preset(task), *given.set]).to_dict() for task in tasks}
    try:
        results.check(settings)
    except ValueError as error:
        parser.error(str(error))
    wanted = [(task, seed) for place in seeds for task in tasks for seed in seeds_of(task, [place])]
    asked = json.dumps([wanted, settings], sort_keys=True)
    sweep = SweepDir(given.runs / hashlib.sha256(asked.encode()).hexdigest()[:12])
    jobs = [[*preset(t), *given.set, f"seed={seed}"] for t, seed in wanted if seed not in results.read(t)]
    try:
        whole = given.no_run or train(sweep, jobs, given.workers)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on.", file=sys.stderr)
        return stopped.exit_code
    finally:
        collect(sweep, results, settings)
    text = table(results, tasks, seeds)
    if given.page is None:
        print(text, end="")
    else:
        insert(given.page, text, mark(given.suite))
    if given.figure is not None:
        given.figure.write_bytes(figure(results, tasks, seeds))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
