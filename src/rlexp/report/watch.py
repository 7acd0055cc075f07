"""Runs as they go on, as one table in the terminal. Reads their files and nothing else."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rlexp.report.grouping import Group, group_runs
from rlexp.report.runs import Run, read_run, run_folders
from rlexp.report.tables import NONE, Table, number, to_text, whole

_BARS = "▁▂▃▄▅▆▇█"
_CURVE = 16
_RUNNING, _WAITING = "running", "waiting"
# A terminal's other screen, as pagers use it: what was there before comes back at the end.
_ENTER, _LEAVE, _REDRAW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"


def watch(tops: Sequence[Path], interval: float) -> int:
    """Show the runs in and below some folders until all of them, and the sweeps they are in, have ended, or Ctrl-C.

    On a terminal the table is drawn anew every ``interval`` seconds and its last state stays; elsewhere it is printed
    each time that it has changed. Runs that begin meanwhile are found.

    Args:
        tops: run folders, or folders with run folders anywhere below them.
        interval: seconds between two looks.

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
            if runs and not any(run.status in (_RUNNING, _WAITING) or _at_work(run.path.parent) for run in runs):
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
    """The runs below some folders; a look reads again only what has changed since the last one."""

    tops: Sequence[Path]

    def __post_init__(self) -> None:
        self._known: dict[Path, tuple[object, Run]] = {}

    def runs(self) -> list[Run]:
        """Every run as it is now, ``running`` only where its process may still be alive."""
        for path in sorted({path for top in self.tops for path in run_folders(top.resolve())}):
            state = [_state(path / name) for name in ("config.yaml", "metrics.jsonl", "summary.json")]
            if path not in self._known or self._known[path][0] != state:
                self._known[path] = (state, read_run(path))
        return [_alive(run) for _, run in self._known.values()]


def table(runs: Iterable[Run], relative_to: Sequence[Path]) -> list[str]:
    """One line a run: what is running first, the newest of it on top, then what has ended."""
    runs = list(runs)
    names = {run.path: _brief(group) for group in group_runs(runs) for run in (*group.runs, *group.left_out)}
    width = max([len(name) for name in names.values()], default=0)
    ordered = sorted(runs, key=lambda run: _in_order(run.path))
    ordered.sort(key=lambda run: run.started, reverse=True)
    ordered.sort(key=lambda run: run.status != _RUNNING)
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
        "group".ljust(width),
    )
    return to_text(Table(columns, rows)) if rows else ["no run yet"]


def sparkline(values: Iterable[float], width: int = _CURVE) -> str:
    """The course of some values as bars between their lowest and highest; beyond ``width``, the last of each share."""
    found = [value for value in values if math.isfinite(value)]
    if len(found) > width:
        found = [found[(i + 1) * len(found) // width - 1] for i in range(width)]
    low, span = (min(found), max(found) - min(found)) if found else (0.0, 0.0)
    return "".join(_BARS[round((value - low) / (span or 1.0) * (len(_BARS) - 1))] for value in found)


def _alive(run: Run) -> Run:
    """A run that says nothing of its end runs, was killed, or waits for its turn; the processes' locks tell."""
    if run.status not in (_RUNNING, "unfinished", "not started"):
        return run
    driven = _at_work(run.path.parent)
    if run.status == "not started" and not (run.path / ".lock").exists():
        return replace(run, status=_WAITING) if driven else run
    return replace(run, status="killed" if _at_work(run.path) is False and not driven else _RUNNING)


def _at_work(folder: Path) -> bool | None:
    """Whether the process that locked a folder last is alive; None where there is none, or on another machine."""
    try:
        text = (folder / ".lock").read_text(encoding="utf-8")
        owner = re.fullmatch(r"process (\d+) on (.+)", text.strip())
        if owner is None or owner[2] != socket.gethostname():
            return None
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return None
    except PermissionError:  # of another user
        return True
    return True


def _brief(group: Group) -> str:
    """A group's name in as few words as a terminal has room for: settings without the nodes that they are in."""
    return " ".join([group.environment, *(f"{key.rpartition('.')[2]}={v}" for key, v in group.settings.items())])


def _in_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts paths as people count: 2 before 10."""
    return [(int(part or -1), "") if i % 2 else (-1, part) for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def _progress(run: Run) -> str:
    total = run.settings.get("total_frames")
    return f"{run.trained:,}" + (f" of {total:,} {run.trained / total:4.0%}" if isinstance(total, int) else "")


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
