"""How fast rlexp is, beside other systems on the same work: systems in turn, several times, ratios first.

python scripts/benchmark.py [--workloads A B C ...] [--repeats 3] [--scale 1.0] [--output docs/benchmark]

Every run is a process of its own, and the systems take turns, so that what else the machine does meets all of them.
Writes OUTPUT.json, every run, and OUTPUT.md, the table. Workloads:

A  torchrl's tutorial           B  one env x 2,048, minibatch 64        C  16 envs x 128, minibatch 512
D  Humanoid, as C               E  collection alone, 1 to 256 envs      F  the update alone
G  time from the command to the first evaluation of at least 9,300      H  time to the first batch, and to --help
I  peak memory, of C            J  two runs at once against two in a row
K  collection alone of 512 simulators written in PyTorch
L  collection alone of MuJoCo's tasks, beside MuJoCo's own steps and Gymnasium's simulators

rlexp-alone is rlexp in one process, env.num_workers=1; rlexp-sync collects with torchrl's Collector; rlexp-gymnasium is
env.backend=gymnasium; physics is MuJoCo's own steps and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = {
    "stable-baselines3": "stable_baselines3",
    "stable-baselines3-normalized": "stable_baselines3",
    "rlexp-envpool": "envpool",
    "envpool-loop": "envpool",
    "envpool-loop-paused": "envpool",
}
TRAINING = ("rlexp", "rlexp-alone", "rlexp-envpool", "stable-baselines3")


@dataclass(frozen=True)
class Comparison:
    """Systems on one workload.

    Attributes:
        workload: its name in ``baselines.py``.
        systems: the first is the one whose ratio to each of the others is told.
        frames: of one run.
        seconds: the kind of work that counts; None counts all of it.
        variant: tells several comparisons on one workload apart.
    """

    workload: str
    systems: tuple[str, ...]
    frames: int
    seconds: str | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.workload}, {self.variant}" if self.variant else self.workload


@dataclass(frozen=True)
class Result:
    """One run: a number, and whether more of it is better."""

    workload: str
    system: str
    value: float
    unit: str
    higher_is_better: bool


COMPARISONS = {
    "A": [Comparison("A", ("rlexp", "tutorial", "stable-baselines3"), 10_000)],
    "B": [Comparison("B", TRAINING[::3], 40_960)],
    "C": [Comparison("C", TRAINING, 122_880)],
    "D": [Comparison("D", TRAINING, 40_960)],
    "E": [
        Comparison(f"E{n}", systems, 61_440, "collect", variant)
        for n in (1, 16, 64, 256)
        for variant, systems in {
            "one core": ("rlexp-alone", "gymnasium-loop"),
            "all cores": ("rlexp", "gymnasium-loops"),
            "EnvPool": ("rlexp-envpool", "envpool-loop", "envpool-loop-paused"),
        }.items()
    ],
    "F": [Comparison(f"F{n}", ("rlexp", "bare-update"), 8_192, "update") for n in (64, 512)],
    "K": [Comparison("K", ("rlexp", "rlexp-sync"), 163_840, "collect")],
    "L": [
        Comparison(f"L-{name}", systems, 61_440, "collect", variant)
        for name in ("HalfCheetah", "Hopper", "Ant", "Humanoid")
        for variant, systems in {"one core": ("rlexp-alone", "physics"), "all": ("rlexp", "rlexp-gymnasium")}.items()
    ],
    "I": [Comparison("C", ("rlexp", "rlexp-alone", "stable-baselines3"), 8_192)],
}


def compared(name: str, repeats: int, scale: float) -> Iterable[Result]:
    """Frames per second, or MiB, of every system of a workload, in turns."""
    for comparison in COMPARISONS[name]:
        systems = [system for system in comparison.systems if available(system)]
        for seed in range(repeats):
            for system in systems:
                run = measured(system, comparison.workload, int(comparison.frames * scale), seed)
                if name == "I":
                    yield Result("I", system, run["peak_mib"], "MiB", False)
                    continue
                kind = comparison.seconds
                seconds = sum(run["seconds"].values()) if kind is None else run["seconds"][kind]
                yield Result(comparison.name, system, run["frames"] / seconds, "frames/s", True)


def measured(system: str, workload: str, frames: int, seed: int) -> dict[str, Any]:
    """What ``baselines.py`` prints."""
    command = [sys.executable, str(HERE / "baselines.py"), system, workload, str(frames), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def time_to_solve(repeats: int, scale: float) -> Iterable[Result]:
    """Seconds from the command to the first evaluation of at least 9,300, and the return at the run's end.

    Evaluations count for rlexp, and for the others they do not.
    """
    ours = {
        "rlexp": [],
        "rlexp-alone": ["env.num_workers=1"],
        "rlexp-envpool": ["env.backend=envpool"],
    }
    others = {
        "stable-baselines3-normalized": ("G-stable-baselines3", 204_800),
        "tutorial": ("G-tutorial", 102_400),
    }
    for seed in range(repeats):
        for system, settings in ours.items():
            if available(system):
                seconds, final = solved_by_rlexp(seed, settings)
                yield Result("G", system, seconds, "s to 9,300", False)
                yield Result("G, at the end", system, final, "return", True)
        for system, (workload, frames) in others.items():
            if available(system) and (system != "tutorial" or seed < 3):
                start = time.time()
                solved = measured(system, workload, frames, seed)["solved"]
                yield Result("G", system, solved - start if solved else float("inf"), "s to 9,300", False)


def solved_by_rlexp(seed: int, settings: list[str]) -> tuple[float, float]:
    """Seconds from ``rlexp-train`` to its first evaluation of at least 9,300, and the last one's return."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        train(folder, f"seed={seed}", *settings).wait()
        rows = [json.loads(line) for line in next(Path(folder).glob("outputs/*/*/metrics.jsonl")).open()]
        spent = max(file.stat().st_mtime for file in Path(folder).glob("outputs/*/*/metrics.jsonl")) - start
    # The clock inside the run counts collection, updates and evaluations; the rest is spread over its start.
    clock = [row["time/collect"] + row["time/update"] + row["time/eval"] for row in rows]
    solved = [t for t, row in zip(clock, rows, strict=True) if row.get("eval/return", 0) >= 9_300]
    return spent - clock[-1] + solved[0] if solved else float("inf"), rows[-1]["eval/return"]


def available(system: str) -> bool:
    """Whether the package that a system needs is installed."""
    return system not in PACKAGES or find_spec(PACKAGES[system]) is not None


def start_up(repeats: int, scale: float) -> Iterable[Result]:
    """Seconds from the command to the first row of metrics, and to the end of ``--help``."""
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            process = train(folder, "total_frames=1_000_000")
            while not any(file.stat().st_size for file in Path(folder).glob("outputs/*/*/metrics.jsonl")):
                if process.poll() is not None:
                    raise SystemExit("rlexp-train ended before its first batch")
                time.sleep(0.02)
            yield Result("H, first batch", "rlexp", time.perf_counter() - start, "s", False)
            process.terminate()
            process.wait()
            start = time.perf_counter()
            train(folder, "--help").wait()
            yield Result("H, --help", "rlexp", time.perf_counter() - start, "s", False)


def side_by_side(repeats: int, scale: float) -> Iterable[Result]:
    """Seconds of two runs at once, and of the same two one after the other."""
    frames = f"total_frames={max(1, round(30 * scale)) * 1024}"
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for process in [train(folder, frames, f"seed={seed}") for seed in (0, 1)]:
                process.wait()
            yield Result("J", "two at once", time.perf_counter() - start, "s", False)
            start = time.perf_counter()
            for seed in (0, 1):
                train(folder, frames, f"seed={seed}").wait()
            yield Result("J", "two in a row", time.perf_counter() - start, "s", False)


def train(folder: str, *arguments: str) -> subprocess.Popen[bytes]:
    """``rlexp-train`` in ``folder``."""
    command = [sys.executable, "-c", "from rlexp.cli.train import main; main()", *arguments]
    if "--help" not in arguments:
        command.append("logger=none")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, **quiet)  # type: ignore[call-overload, no-any-return]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def table(results: Sequence[Result]) -> str:
    """Markdown: the ratio of the first system of each workload to every other, then medians and spreads."""
    lines = ["| workload | system | first / this | median | spread (min to max) | unit | runs |", "| --- " * 7 + "|"]
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.workload, {}).setdefault(result.system, []).append(result)
    for workload, systems in groups.items():
        first = statistics.median(r.value for r in next(iter(systems.values())))
        for system, runs in systems.items():
            values = [run.value for run in runs]
            median = statistics.median(values)
            ratio = first / median if runs[0].higher_is_better else median / first
            spread = f"{number(min(values))} to {number(max(values))}"
            shown = f"{ratio:.2f} x" if median != float("inf") else "-"
            lines.append(
                f"| {workload} | {system} | {shown} | {number(median)} | {spread} | {runs[0].unit} | {len(values)} |"
            )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits at least, none after the point where there are as many before it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Run the workloads asked for and write what came out."""
    special: dict[str, Callable[[int, float], Iterable[Result]]] = {
        "G": time_to_solve,
        "H": start_up,
        "J": side_by_side,
    }
    names = sorted([*COMPARISONS, *special])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system; G takes at least 5")
    parser.add_argument("--scale", type=float, default=1.0, help="of the frames of A to F, I to L, in whole batches")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmark"))
    arguments = parser.parse_args()

    results: list[Result] = []
    try:
        for name in arguments.workloads:
            repeats, scale = max(5, arguments.repeats) if name == "G" else arguments.repeats, arguments.scale
            for result in special[name](repeats, scale) if name in special else compared(name, repeats, scale):
                print(f"{result.workload:16} {result.system:18} {result.value:12,.1f} {result.unit}", flush=True)
                results.append(result)
    finally:  # a system that fails loses nothing that was measured before it
        write(results, arguments.output)


def write(results: Sequence[Result], output: Path) -> None:
    """Write what was measured, and print the table."""
    machine = {"cores": cores(), "machine": platform.machine(), "python": platform.python_version()}
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "load": os.getloadavg(), "runs": [asdict(result) for result in results]}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    output.with_suffix(".md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
