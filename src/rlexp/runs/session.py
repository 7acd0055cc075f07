"""What surrounds training: the run's files, its sinks, the signals that stop it, and a clean end on every path."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from rlexp.config.redaction import RedactingFormatter, redact
from rlexp.experiment import ExperimentConfig
from rlexp.files import write_json
from rlexp.loggers import Row, Sink
from rlexp.loggers.local import MetricsFile, read_metrics
from rlexp.loggers.progress import ProgressBar
from rlexp.machine import resource_use
from rlexp.plots import plot_training
from rlexp.runs.rundir import RunDir, add_resources
from rlexp.runs.stops import StopSignals

log = logging.getLogger(__name__)


def _note_all() -> None:
    """Have rlexp's messages noted in ``train.log``, unless the program has chosen a level."""
    if (logger := logging.getLogger("rlexp")).level == logging.NOTSET:
        logger.setLevel(logging.INFO)


_by_thread: dict[int | None, logging.Handler] = {}


def _listen(handler: logging.Handler) -> None:
    """Give a run's handler what is logged, but for what another run's thread logs."""
    _by_thread[threading.get_ident()] = handler
    handler.addFilter(lambda record: _by_thread.get(record.thread, handler) is handler)
    logging.getLogger("rlexp").addHandler(handler)


def _ignore(handler: logging.Handler) -> None:
    logging.getLogger("rlexp").removeHandler(handler)
    for thread in [thread for thread, theirs in _by_thread.items() if theirs is handler]:
        del _by_thread[thread]


class LogBuffer(logging.Handler):
    """Keeps what is logged while a run is built, until its `Session` writes it to ``train.log``; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def __enter__(self) -> LogBuffer:
        _note_all()
        _listen(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ignore(self)


class Session:
    """Opens a run's sinks and closes them whatever happens; a context manager.

    SIGINT, SIGTERM and SIGUSR1 only set `stop`, so that the loop can finish its batch and save; a second one of any of
    them ends the process at once, and still leaves the run's files whole.

    Args:
        run: the run's folder, locked.
        config: the checked config.
        info: facts for ``metadata.json``.
        frames: where training starts; what the run logged beyond is cut off.
        run_id: identifies the run to its sinks, the same each time that it is resumed.
        logged: what was logged while the run was built, for ``train.log``.
    """

    def __init__(
        self,
        run: RunDir,
        config: ExperimentConfig,
        info: Mapping[str, Any],
        frames: int,
        run_id: str,
        logged: Sequence[logging.LogRecord] = (),
    ) -> None:
        self._logged = logged
        self._run = run
        self._config = config
        self._info = info
        self._frames = frames
        self._run_id = run_id
        self._copies: list[Sink] = []
        self._given: Path | None = None
        self._missing = 0
        self._signals = StopSignals()
        self._endings: list[Callable[[], object]] = []
        self._log_file = logging.FileHandler(run.log, encoding="utf-8")
        self._log_file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.summary: dict[str, Any] = {"status": "failed"}

    @property
    def stop(self) -> signal.Signals | None:
        """The signal that asked to stop; None before."""
        return self._signals.stop

    def __enter__(self) -> Session:
        for record in self._logged:
            self._log_file.handle(record)
        _listen(self._log_file)
        try:
            self._open()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _open(self) -> None:
        config = redact(self._config.to_dict())
        self._run.write_config(config)
        info = {**self._info, "run_id": self._run_id}
        self._run.write_metadata(config, info, self._frames, self._config.total_frames)
        used = resource_use()
        self._endings.append(lambda: add_resources(self._run.metadata, used))
        write_json(self._run.summary, {"status": "running"})
        self._metrics = MetricsFile(self._run.metrics, self._frames)
        self._endings.append(lambda: self._metrics.close(self.summary))
        self._missing = self._frames // self._config.collector.frames_per_batch - self._metrics.rows
        if self._missing > 0:
            message = "%d rows before the checkpoint are missing from metrics.jsonl; they cannot be restored."
            log.warning(message, self._missing)
        last = self._config.num_batches * self._config.collector.frames_per_batch
        self._bar = ProgressBar(last, self._frames, read_metrics(self._run.path))
        self._endings += [self._bar.close, lambda: self._copy(lambda sink: sink.close(self.summary)), self._plot]
        self._copies = self._config.logger.open(self._run.path, config, self._run_id, self._frames)
        self._signals.open()
        self._endings.append(self._signals.close)

    def log(self, row: Row) -> None:
        """Give one row to every sink, the metrics file first."""
        self._metrics.log(row)
        self._bar.log(row)
        self._copy(lambda sink: sink.log(row))

    def amend(self, row: Row) -> None:
        """Give every sink more metrics of the last row, which has the same frames."""
        if self._metrics.amend(row):
            self._bar.log(row)
            self._copy(lambda sink: sink.log(row))

    def log_video(self, path: Path, frames: int) -> None:
        """Give a video to every sink, before the row of the same frames."""
        self._copy(lambda sink: sink.log_video(path, frames))

    def log_checkpoint(self, path: Path) -> None:
        """Give a checkpoint to every sink, once."""
        if path != self._given:
            self._given, named = path, path.with_name("best")
            best = named.is_file() and named.read_text(encoding="utf-8").strip() == path.name
            self._copy(lambda sink: sink.log_checkpoint(path, best=best))

    def _copy(self, give: Callable[[Sink], None]) -> None:
        for sink in [*self._copies]:
            try:
                give(sink)
            except Exception as error:  # whatever a copy's library raises
                name = type(sink).__name__
                log.warning("%s failed and gets no more rows; metrics.jsonl has them all: %s", name, error)
                self._copies.remove(sink)

    def sync(self) -> None:
        """Make the rows so far durable: a checkpoint must not be newer than they are."""
        self._metrics.sync()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            log.error("The run failed.", exc_info=error)
        if self._missing > 0:
            self.summary |= {"missing_rows": self._missing}
        self.summary = redact(self.summary)
        self._attempt(lambda: write_json(self._run.summary, self.summary))
        for ending in self._endings:
            self._attempt(ending)
        _ignore(self._log_file)
        self._log_file.close()

    def _plot(self) -> None:
        if self._run.metrics.stat().st_size:
            plot_training(read_metrics(self._run.path), self._run.plots)

    def _attempt(self, ending: Callable[[], object]) -> None:
        """One step of the end; on a full disk the others must still be made, and the run's own error be seen."""
        try:
            ending()
        except (OSError, ValueError, LookupError) as error:  # or a file that was damaged meanwhile
            log.error("The run's folder could not be finished: %s", error)


class Follower:
    """The `Session` of a learner that leaves the run's files to another: it only takes the signals that ask to stop."""

    def __init__(self) -> None:
        self._signals = StopSignals()
        self.summary: dict[str, Any] = {}

    @property
    def stop(self) -> signal.Signals | None:
        """The signal that asked this process to stop; None before."""
        return self._signals.stop

    def __enter__(self) -> Follower:
        self._signals.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._signals.close()

    def log(self, row: Row) -> None:
        """Nothing: the other learner logs it."""

    def amend(self, row: Row) -> None:
        """Nothing: the other learner logs it."""

    def log_video(self, path: Path, frames: int) -> None:
        """Nothing: the other learner logs it."""

    def log_checkpoint(self, path: Path) -> None:
        """Nothing: the other learner logs it."""

    def sync(self) -> None:
        """Nothing: there are no rows."""


@contextmanager
def console_logging(level: int = logging.INFO) -> Iterator[None]:
    """Show rlexp's messages on stderr, above a progress bar where there is one."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.getLogger("rlexp")
    logger.setLevel(level)
    logger.addHandler(handler)
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # it reports in colours, whatever it writes to
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)
