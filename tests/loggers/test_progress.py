"""The progress of a training: a bar that fits its terminal or notebook, and lines in a log."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tqdm.auto

from rlexp.loggers import progress
from rlexp.loggers.progress import ProgressBar

ROWS = [
    {"frames": 20_480, "train/lr": 2.93e-4, "train/episode_return": 9101.4, "train/episode_length": 9.0},
    {"frames": 40_960, "train/lr": 2.2e-4, "eval/return": 9324.6, "train/episode_return": 9201},
    {"frames": 61_440, "train/lr": 1.5e-4, "eval/return": 9318.2},
]  # fmt: skip


def rendered(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The last state of the bar on a terminal of so many columns."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(child, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        bar = ProgressBar(102_400, 0)
        for row in ROWS:
            bar.log(row)
        bar.close()
        terminal.write("\0")
        terminal.flush()
        written = ""
        while not written.endswith("\0"):
            written += os.read(main, 2**16).decode()
    os.close(main)
    assert written.count("\n") == 1, "it stays on its line"
    states = [state for state in re.split(r"[\r\n\0]", written) if state]
    assert max(map(len, states)) < columns
    return states[-1].rstrip()


def test_at_160_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    said = rendered(160, monkeypatch)
    values = r"61\.4k/102k frames, [\d.]+[kM]?/s, 00:00 left, return 9201 length 9, eval 9318 best 9325, lr 1\.5e-4"
    assert re.fullmatch(rf" 60%\|█{{10,}}. +\| {values}", said), said


def test_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    said = rendered(80, monkeypatch)
    values = r"61\.4k/102k [\d.]+[kM]?/s 00:00 left, return 9201 len 9, eval 9318 best 9325, lr (1|2)e-4"
    assert re.fullmatch(values, said), said


def test_at_40_columns_whole_values_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"61\.4k/102k [\d.]+[kM]?/s 00:00 left", rendered(40, monkeypatch))


def test_in_a_log_a_line_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "rlexp")
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bar = ProgressBar(102_400, 10_240, rows=[{"frames": 10_240, "eval/return": 9999.0}])
    for i in range(11):
        now += 10.0
        bar.log(ROWS[0] | {"frames": 20_480 + 100 * i})
    bar.close()
    assert len(caplog.messages) == 5, "the first, after 30, 60 and 90 seconds, and the last"
    first = " 20% 20.5k/102k frames, 1.02k/s, 01:20 left, return 9101 length 9, eval 9999 best 9999, lr 2.9e-4"
    assert caplog.messages[0] == first
    assert caplog.messages[-1].startswith(" 21% 21.5k/102k")


def test_the_log_of_a_run_has_no_carriage_return(tiny_run: Path) -> None:
    said = (tiny_run / "train.log").read_text()
    assert re.search(r"100% 1\.02k/1\.02k frames, .*/s, 00:00 left, return .*, eval .* best .*, lr", said)
    assert "\r" not in said


def test_a_notebook_shows_the_whole_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Notebook(tqdm.auto.tqdm):  # type: ignore[type-arg]
        """As tqdm's own: its width is that of the page, and what it shows is no text of a terminal."""

        __module__ = "tqdm.notebook"
        shown: ClassVar[list[str]] = []

        @property
        def format_dict(self) -> Any:
            return {**super().format_dict, "ncols": "100%"}

        def display(self, *_: object, **__: object) -> None:
            self.shown.append(self.format_meter(**{**self.format_dict, "ncols": None}))

    monkeypatch.setattr(progress, "tqdm", Notebook)
    bar = ProgressBar(102_400, 0)
    for row in ROWS:
        bar.log(row)
    bar.close()
    assert re.search(r"60%\|.+\| 61\.4k/102k frames, .*, eval 9318 best 9325, lr 1\.5e-4", Notebook.shown[-1])
