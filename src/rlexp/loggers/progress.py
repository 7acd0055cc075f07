"""How far a run is: a bar on a terminal or in a notebook, elsewhere a line in the log now and then."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from rlexp.loggers.sink import Row

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0
_BAR = "{percentage:3.0f}%|{bar}| "
_LONG = "{n_fmt}/{total_fmt} frames, {rate_noinv_fmt}, {remaining} left"
_SHORT = "{n_fmt}/{total_fmt} {rate_noinv_fmt} {remaining} left"


class ProgressBar:
    """Frames, frames/s, time left, training return and length, last and best evaluation, learning rate.

    Where there are too few columns, the bar is left out first, then the last of these.

    Args:
        total_frames: simulator frames when the training ends.
        frames: where this process starts.
        rows: what the run logged before.
    """

    def __init__(self, total_frames: int, frames: int, rows: Iterable[Row] = ()) -> None:
        in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
        self._total, self._first = total_frames, frames
        self._latest: dict[str, float] = {}
        for row in rows:
            self._take(row)
        self._begun, self._logged_at, self._pending = time.monotonic(), 0.0, False
        self._bar = (
            tqdm(total=total_frames, initial=frames, unit="", unit_scale=True, dynamic_ncols=True)
            if in_notebook or sys.stderr.isatty()
            else None
        )

    def log(self, row: Row) -> None:
        """Show the newest values."""
        self._take(row)
        if self._bar is not None:
            self._bar.bar_format = self._fitting({**self._bar.format_dict, "n": row["frames"]})
            self._bar.update(row["frames"] - self._bar.n)
        elif time.monotonic() - self._logged_at >= _SECONDS_BETWEEN_LINES or not self._logged_at:
            self._log_line()
        else:
            self._pending = True

    def close(self) -> None:
        """Leave the finished bar on the screen, or the last line in the log."""
        if self._bar is not None:
            self._bar.close()
        elif self._pending:
            self._log_line()

    def _take(self, row: Row) -> None:
        self._latest |= {key: value for key, value in row.items() if isinstance(value, int | float)}
        if "eval/return" in row:
            value = self._latest["eval/return"]
            self._latest["best"] = max(value, self._latest.get("best", value))

    def _log_line(self) -> None:
        self._logged_at, self._pending = time.monotonic(), False
        log.info(
            "%s",
            tqdm.format_meter(
                self._latest["frames"],
                self._total,
                self._logged_at - self._begun,
                initial=self._first,
                unit="",
                unit_scale=True,
                bar_format="{percentage:3.0f}% " + ", ".join([_LONG, *self._values()]),
            ),
        )

    def _fitting(self, now: Mapping[str, Any]) -> str:
        """The longest format that the columns hold: with a bar, without, or with fewer values."""
        long = _BAR + ", ".join([_LONG, *self._values()])
        if not isinstance(now["ncols"], int):  # a notebook
            return long
        short = [_SHORT, *self._values(short=True)]
        formats = [long, *(", ".join(short[:count]) for count in range(len(short), 0, -1))]
        lengths = [len(tqdm.format_meter(**{**now, "ncols": None, "bar_format": each})) for each in formats]
        return next(
            (each for each, length in zip(formats, lengths, strict=True) if length <= now["ncols"]), formats[-1]
        )

    def _values(self, *, short: bool = False) -> Iterator[str]:
        found = {key: _number(value) for key, value in self._latest.items()}
        if "train/episode_return" in found:
            length = "len" if short else "length"
            yield f"return {found['train/episode_return']} {length} {found['train/episode_length']}"
        if "eval/return" in found:
            yield f"eval {found['eval/return']} best {found['best']}"
        if "train/lr" in found:
            yield "lr " + re.sub("e-0", "e-", f"{self._latest['train/lr']:.{0 if short else 1}e}")


def _number(value: float) -> str:
    """Three significant digits, or a whole number: as much as a glance takes in."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
