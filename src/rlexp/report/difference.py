"""What two runs differ in: settings, code, versions, hardware, and the first row at which their metrics part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlexp.report.grouping import with_order
from rlexp.report.runs import (
    COMPLETED,
    ReportError,
    UnreadableError,
    flatten,
    read_json,
    read_rows,
    read_settings,
    read_text,
)
from rlexp.report.tables import NONE, Table, to_text
from rlexp.runs.rundir import RunDir

_ORIGIN = ("git", "versions", "hardware", "device", "threads", "learners")

Pairs = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Difference:
    """What run A and run B differ in; values are JSON text, and a dash where a run has none.

    Attributes:
        settings: dotted name to both values, of those that differ.
        origin: the same for commit, versions, hardware, device, threads and learners of ``metadata.json``.
        uncommitted: whether their uncommitted changes (``git.diff``) differ.
        rows: how many rows of metrics each has.
        equal: how many of them are equal from the first on, timings aside.
        frames: simulator frames of the last equal row; 0 where the first row differs.
        metrics: the metrics that differ in the row after; empty where one run has no such row.
    """

    settings: Pairs
    origin: Pairs
    uncommitted: bool
    rows: tuple[int, int]
    equal: int
    frames: int
    metrics: Pairs

    def __bool__(self) -> bool:
        """Whether they differ in anything."""
        return bool(self.settings or self.origin or self.uncommitted or set(self.rows) != {self.equal})


def difference(a: Path, b: Path) -> Difference:
    """Compare the files of two runs, finished or not; nothing that they name is built.

    Raises:
        ReportError: a folder holds no run, or a file of it cannot be read.
    """
    runs = RunDir(a), RunDir(b)
    for run in runs:
        if not run.config.is_file():
            raise ReportError(f"{run.path} has no config.yaml, so it is no run's folder.")
    try:
        rows_a, rows_b = map(_rows, runs)
        equal = 0
        for one, other in zip(rows_a, rows_b, strict=False):
            if _differing(one, other):
                break
            equal += 1
        return Difference(
            settings=_differing(*(with_order(read_settings(run.config)) for run in runs)),
            origin=_differing(*map(_origin, runs)),
            uncommitted=len({_uncommitted(run) for run in runs}) > 1,
            rows=(len(rows_a), len(rows_b)),
            equal=equal,
            frames=int(rows_a[equal - 1]["frames"]) if equal else 0,
            metrics=_differing(rows_a[equal], rows_b[equal]) if equal < min(len(rows_a), len(rows_b)) else {},
        )
    except UnreadableError as error:
        raise ReportError(str(error)) from error


def to_lines(found: Difference) -> list[str]:
    """The differences as lines for a terminal; what comes from the runs is escaped."""
    if not found:
        return [f"no difference: equal settings, origin and {found.equal} rows of metrics"]
    lines = [*_block("settings", found.settings), *_block("origin", found.origin)]
    if found.uncommitted:
        lines += ["uncommitted changes (git.diff) differ", ""]
    if set(found.rows) == {found.equal}:
        return [*lines, f"metrics: all {found.equal} rows are equal"]
    so_far = f"the first {found.equal} rows, to {found.frames:,} frames, are equal" if found.equal else ""
    if found.metrics:
        parting = f"row {found.equal + 1} differs"
        return [*lines, *_block(f"metrics: {f'{so_far}; ' if so_far else ''}{parting}", found.metrics)[:-1]]
    ended = f"A has {found.rows[0]} rows, B has {found.rows[1]}"
    return [*lines, f"metrics: {f'{so_far}; ' if so_far else ''}{ended}"]


def _block(heading: str, pairs: Pairs) -> list[str]:
    table = Table(("", "A", "B"), tuple((f"  {name}", *values) for name, values in pairs.items()), names=3)
    return [heading, *to_text(table), ""] if pairs else []


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pairs:
    """The names whose values are not the same text of JSON, in the order of A; timings are left out."""
    both = ((name, _json(a, name), _json(b, name)) for name in dict.fromkeys([*a, *b]) if not name.startswith("time/"))
    return {name: (one, other) for name, one, other in both if one != other}


def _json(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else NONE


def _rows(run: RunDir) -> list[Mapping[str, Any]]:
    if not run.metrics.exists():
        return []
    summary = read_json(run.summary) if run.summary.exists() else {}
    return read_rows(run.metrics, torn=summary.get("status") != COMPLETED)


def _origin(run: RunDir) -> dict[str, Any]:
    metadata = read_json(run.metadata) if run.metadata.exists() else {}
    try:
        return dict(flatten({key: metadata[key] for key in _ORIGIN if key in metadata}))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{run.metadata}: {error}") from error


def _uncommitted(run: RunDir) -> str:
    path = run.path / "git.diff"
    return read_text(path) if path.exists() else ""
