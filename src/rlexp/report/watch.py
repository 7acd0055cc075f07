"""A live table of runs in the terminal, from their files alone."""

from __future__ import annotations

import math
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rlexp.report.grouping import Group, group_runs
from rlexp.report.liveness import owner_of
from rlexp.report.runs import RUNNING, WAITING, Run, current, read_run, run_folders
from rlexp.report.tables import NONE, Table, number, to_text, whole

_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 16
# The terminal's alternate screen, as pagers use it: what was there before comes back at the end.
_ENTER, _LEAVE, _REDRAW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"


def watch(tops: Sequence[Path], interval: float) -> int:
    """Show the runs in and below some folders until all of them, and the sweeps they are in, have ended, or Ctrl-C.

    On a terminal the table is redrawn every ``interval`` seconds and its last state stays; elsewhere it is printed
    each time that it has changed. Runs that start meanwhile are found.

    Args:
        tops: run folders, or folders with run folders anywhere below them.
        interval: seconds between two updates.

    Returns:
        0 when every run has ended; 130 after Ctrl-C.
    """
    seen = Seen(tops)
    on_terminal = sys.stdout.isatty()
    shown = ""
    code = 0
    if on_terminal:
        print(_ENTER, end="")
    try:
        while True:
            runs = seen.runs()
            text = "\n".join(table(runs, relative_to=tops))
            changed, shown = text != shown, text
            if on_terminal:
                size = shutil.get_terminal_size()
                lines = [f"{_counts(runs)}; {datetime.now():%H:%M:%S}, Ctrl-C ends this view, not the runs", "", text]
                print(_REDRAW + _fitting("\n".join(lines), size.columns, size.lines), end="", flush=True)
            elif changed:
                print(f"{text}\n", flush=True)
            if runs and not any(run.status in (RUNNING, WAITING) or _in_live_sweep(run) for run in runs):
                break
            time.sleep(interval)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    finally:
        if on_terminal:
            print(_LEAVE + shown, flush=True)
    return code


@dataclass
class Seen:
    """The runs below some folders; each call reads again only what has changed since the last one."""

    tops: Sequence[Path]

    def __post_init__(self) -> None:
        self._known: dict[Path, tuple[object, Run]] = {}

    def runs(self) -> list[Run]:
        """Every run as it is now."""
        for path in sorted({path for top in self.tops for path in run_folders(top.resolve())}):
            state = [_state(path / name) for name in ("config.yaml", "metrics.jsonl", "summary.json")]
            if path not in self._known or self._known[path][0] != state:
                self._known[path] = (state, read_run(path))
        return [current(run) for _, run in self._known.values()]


def table(runs: Iterable[Run], relative_to: Sequence[Path]) -> list[str]:
    """One line per run: running ones first, then those that have ended, the newest on top."""
    runs = list(runs)
    names = {run.path: _brief(group) for group in group_runs(runs) for run in (*group.runs, *group.left_out)}
    width = max([len("configuration"), *map(len, names.values())])  # to the left, where a narrow terminal shows it
    ordered = sorted(runs, key=lambda run: _in_order(run.path))
    ordered.sort(key=lambda run: run.started, reverse=True)
    ordered.sort(key=lambda run: run.status != RUNNING)
    rows = tuple(
        (
            _below(run.path, relative_to),
            NONE if run.seed is None else str(run.seed),
            run.status,
            _progress(run),
            whole(run.fps),
            number(run.final) if run.returns.size else NONE,
            sparkline(run.returns).ljust(_CURVE),
            names.get(run.path, run.problem).ljust(width),
        )
        for run in ordered
    )
    columns = (
        "run",
        "seed",
        "status",
        "frames",
        "frames/s",
        "eval/return",
        "so far".ljust(_CURVE),
        "configuration".ljust(width),
    )
    return to_text(Table(columns, rows)) if rows else ["no run yet"]


def sparkline(values: Iterable[float], width: int = _CURVE) -> str:
    """Values as bars between their lowest and highest; of more than ``width``, every so many-th."""
    found = [value for value in values if math.isfinite(value)]
    if len(found) > width:
        found = [found[(i + 1) * len(found) // width - 1] for i in range(width)]
    low, span = (min(found), max(found) - min(found)) if found else (0.0, 0.0)
    return "".join(_BARS[round((value - low) / (span or 1.0) * (len(_BARS) - 1))] for value in found)


def _in_live_sweep(run: Run) -> bool:
    """Whether a sweep, or a trial of a search, that the run is part of is at work."""
    return any(owner_of(folder) == "alive" for folder in run.path.parents[:3])


def _brief(group: Group) -> str:
    """A group's name in short: settings without the nodes that they are in."""
    return " ".join([group.environment, *(f"{key.rpartition('.')[2]}={v}" for key, v in group.settings.items())])


def _in_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts paths in natural order: 2 before 10."""
    return [(int(part or -1), "") if i % 2 else (-1, part) for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def _progress(run: Run) -> str:
    total = run.settings.get("total_frames")
    if not isinstance(total, int) or total < 1:
        return f"{run.trained:,}"
    return f"{run.trained:,} of {total:,} {run.trained / total:4.0%}"


def _below(path: Path, tops: Sequence[Path]) -> str:
    for top in tops:
        if path.is_relative_to(top.resolve()):
            return str(path.relative_to(top.resolve())) if path != top.resolve() else path.name
    return str(path)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _counts(runs: Sequence[Run]) -> str:
    return ", ".join(f"{count} {status}" for status, count in Counter(run.status for run in runs).items()) or "no run"


def _fitting(text: str, columns: int, lines: int) -> str:
    rows = [line[:columns] for line in text.split("\n")]
    if len(rows) <= lines:
        return "\n".join(rows)
    return "\n".join([*rows[: lines - 1], f"... {len(rows) - lines + 1} more lines"])
