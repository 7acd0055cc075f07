"""What surrounds a training: the run's files, its sinks, the signals that stop it, and a clean end on every path."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from rlexp.experiment import Experiment
from rlexp.loggers import Row, Sink
from rlexp.loggers.local import MetricsFile, ProgressBar
from rlexp.plots import plot_training
from rlexp.rundir import RunDir, write_json

log = logging.getLogger(__name__)

_STOPS = (signal.SIGINT, signal.SIGTERM)


class Session:
    """Opens a run's sinks and closes them whatever happens; a context manager.

    SIGINT and SIGTERM only set `stop`, so that the loop can finish its batch and save; a second one ends the process.

    Args:
        run: the run's folder.
        experiment: what is run.
        info: facts for ``metadata.json``.
    """

    def __init__(self, run: RunDir, experiment: Experiment, info: Mapping[str, Any]) -> None:
        self._run = run
        self._experiment = experiment
        self._info = info
        self._sinks: list[Sink] = []
        self._previous: dict[int, Any] = {}
        self._log_file = logging.FileHandler(run.log, encoding="utf-8")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.stop: signal.Signals | None = None
        self.summary: dict[str, Any] = {"status": "failed"}

    def __enter__(self) -> Session:
        logging.getLogger("rlexp").addHandler(self._log_file)
        config = self._experiment.to_dict()
        self._run.write_config(config)
        self._run.write_metadata(config, self._info)
        self._sinks = [
            MetricsFile(self._run.metrics),
            ProgressBar(self._experiment.total_frames),
            *self._experiment.logger.open(self._run.path, config),
        ]
        self._previous = {number: signal.signal(number, self._on_signal) for number in _STOPS}
        return self

    def log(self, row: Row) -> None:
        """Give one row to every sink, the metrics file first."""
        for sink in self._sinks:
            sink.log(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is not None:
            self.summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            log.error("The run failed.", exc_info=error)
        write_json(self._run.summary, self.summary)
        for sink in self._sinks:
            sink.close(self.summary)
        if self._run.metrics.stat().st_size:
            plot_training(self._run.path, self._run.plots)
        logging.getLogger("rlexp").removeHandler(self._log_file)
        self._log_file.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None:
            sys.exit(128 + number)
        self.stop = signal.Signals(number)
        log.warning("%s: finishing this batch and saving; a second one stops at once.", self.stop.name)


@contextmanager
def console_logging(level: int = logging.INFO) -> Iterator[None]:
    """Show rlexp's messages on stderr, above a progress bar where there is one."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("rlexp")
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)
