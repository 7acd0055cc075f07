"""Worker processes on this machine. Imports no torch: a worker does so where it can be shared, in the fork server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from rlexp.config import ConfigError
from rlexp.envs.snapshot import StateUnavailableError

if TYPE_CHECKING:
    from rlexp.collectors.share import Share

_PASSED_ON = (ConfigError, StateUnavailableError)


class Processes:
    """Workers in processes of their own, one a share (`rlexp.collectors.share.Workers`).

    All are forked from one process that has torch imported and nothing else done, so that they start at once and share
    that memory. A worker ends when its pipe closes, and at once when this process dies, however that happens.

    Args:
        shares: what each worker collects.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, shares: Sequence[Share], timeout: float) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rlexp.collectors.share", "rlexp.kernels.rollout"])
        self._timeout = timeout
        self._workers = [_Worker(context, share) for share in shares]

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return [worker.pid for worker in self._workers]

    def ask(self, method: str, *arguments: object) -> None:
        """Let each worker call a method, all with the same arguments."""
        message = pickle.dumps((method, arguments))
        for worker in self._workers:
            worker.send(message)

    def answers(self) -> list[Any]:
        """What the calls returned, in the order of the shares."""
        deadline = time.monotonic() + self._timeout
        found = [worker.receive(deadline, self._timeout) for worker in self._workers]
        for answer in found:
            if isinstance(answer, _PASSED_ON):
                raise answer
        return found

    def close(self) -> None:
        """End the processes: they close their environments first, if they are not busy for long."""
        for worker in self._workers:
            worker.hang_up()
        deadline = time.monotonic() + 5
        for worker in self._workers:
            worker.end(deadline)


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, share: Share) -> None:
        self._share = share
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, share), daemon=True)
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid

    def send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            raise self._died() from error

    def receive(self, deadline: float, timeout: float) -> Any:
        try:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self._process.kill()
                message = f"{self._share}, process {self.pid}, did not answer in {timeout:g} s (collector.timeout)."
                raise _worker_error(message)
            failed, value = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died() from error
        if failed:
            raise _worker_error(f"{self._share} failed in process {self.pid}:\n{value}")
        return value

    def hang_up(self) -> None:
        self._pipe.close()

    def end(self, deadline: float) -> None:
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _died(self) -> Exception:
        self._process.join(timeout=5)
        return _worker_error(f"{self._share}, process {self.pid}, died with exit code {self._process.exitcode}.")


def _worker_error(message: str) -> Exception:
    from rlexp.collectors.share import WorkerError

    return WorkerError(message)


def _serve(pipe: Connection, share: Share) -> None:
    """Answer calls until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    from rlexp.collectors.share import ShareWorker

    worker = ShareWorker(share)
    try:
        while True:
            method, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer = getattr(worker, method)(*arguments)
            except _PASSED_ON as error:
                answer = error
            pipe.send_bytes(pickle.dumps((False, answer)))
    except (EOFError, ConnectionError):
        pass
    except Exception:
        pipe.send_bytes(pickle.dumps((True, traceback.format_exc())))
    finally:
        worker.close()


def _end_with_the_main_process() -> None:
    """In the middle of a long batch too, which an end of the pipe is not seen in."""
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)
