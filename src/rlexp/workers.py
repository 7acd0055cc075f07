"""Worker processes: a pipe to each, timeouts, deaths reported by name, an end with the main process."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from threading import Thread
from typing import Any

from rlexp.errors import RlexpError


class WorkerError(RlexpError):
    """A worker process failed, died or hangs; the message says which and why."""


@dataclass
class Worker:
    """One worker process.

    Attributes:
        name: what it does, for errors.
        pid: its process id.
    """

    name: str
    pid: int
    pipe: Connection

    def __str__(self) -> str:
        return f"{self.name}, process {self.pid},"


class Workers:
    """Processes that each hold one object and answer calls of its methods, all at the same time.

    One program is started, imports what the workers need, and is forked once per worker: they share those imports and
    their memory. It is a program of its own, since torch's threads do not survive a fork of this process, and
    multiprocessing's would run the user's script again. The workers end with `close`, and when this process ends,
    however that happens: busy ones are killed after three seconds.

    Args:
        target: makes a worker's object, whose ``close`` is called at the end; importable by name.
        arguments: each worker's name, with the arguments of its ``target``; picklable.
        preload: modules to import before the fork, beside the target's.
        fds: file descriptors that the workers inherit.
        passed_on: exceptions that `answers` raises as the worker did; one from a call leaves the workers as they are,
            one from a ``target`` ends them.
        error: what `answers` raises for all else.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        arguments: Mapping[str, tuple[Any, ...]],
        *,
        preload: Sequence[str] = (),
        fds: Sequence[int] = (),
        passed_on: tuple[type[Exception], ...] = (),
        error: type[Exception] = WorkerError,
    ) -> None:
        self._names, self._error = list(arguments), error
        self._asked: list[int] = []
        self._exit_codes: dict[int, int] = {}
        self._failure: str | None = None
        requests = [pickle.dumps((target, own, passed_on)) for own in arguments.values()]
        pairs = [Pipe() for _ in requests]
        self._pipes = [ours for ours, _ in pairs]
        self._control, control = Pipe()
        self._program = _start_program(control.fileno(), [their.fileno() for _, their in pairs], fds)
        for end in (control, *(their for _, their in pairs)):
            end.close()
        self._polls = []
        for pipe in self._pipes:
            self._polls.append(poll := select.poll())
            poll.register(pipe, select.POLLIN)
        self._found: list[Worker] | None = None
        with suppress(OSError):  # it died, as the first answer will show
            self._control.send_bytes(pickle.dumps(([target.__module__, *preload], requests)))

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers)

    @property
    def pids(self) -> list[int]:
        """The processes' ids; waits until they are forked."""
        return [worker.pid for worker in self._workers]

    def ask(self, method: str, *arguments: object) -> None:
        """Let each worker call a method, all with the same arguments.

        Raises:
            WorkerError: one died (or what ``error`` is, as everywhere below).
        """
        message = pickle.dumps((method, arguments))
        for i in range(len(self._pipes)):
            self._send(i, message)

    def ask_each(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> None:
        """Let some workers call a method, each with its own arguments.

        Raises:
            WorkerError: one died.
        """
        for i, own in arguments.items():
            self._send(i, pickle.dumps((method, own)))

    def answers(self, timeout: float | None = None) -> list[Any]:
        """What the calls asked for since the last `answers` returned, in the order of the calls.

        A failure ends all workers.

        Args:
            timeout: seconds to wait for all of them; None waits for ever.

        Raises:
            WorkerError: a worker raised, died, or did not answer in time.
        """
        patience = Patience(timeout)
        asked, self._asked = self._asked, []
        found = [self._receive(i, patience) for i in asked]
        for raised, value in found:
            if raised:
                raise value
        return [value for _, value in found]

    def close(self) -> None:
        """End the processes: they close their objects first, if they are not busy for long."""
        self._failure = self._failure or "the worker processes are closed."
        self._hang_up()
        self._program.wait()

    @property
    def _workers(self) -> list[Worker]:
        if self._found is None:
            try:
                pids = self._control.recv()
            except (EOFError, OSError) as error:
                code = self._program.wait()
                raise self._fail(f"{self._names[0]}: no worker process could be started (exit code {code}).") from error
            self._found = [Worker(*one) for one in zip(self._names, pids, self._pipes, strict=True)]
        return self._found

    def _send(self, i: int, message: bytes) -> None:
        try:
            self._pipes[i].send_bytes(message)
        except OSError as error:
            # What it says of its end, if anything, tells more than that it is gone.
            self._receive(i, Patience(5))
            raise self._died(i) from error
        self._asked.append(i)

    def _receive(self, i: int, patience: Patience) -> tuple[bool, Any]:
        pipe = self._pipes[i]
        _busy_wait(self._polls[i])
        try:
            if not patience.outlasts(pipe):
                raise self._fail(f"{self._workers[i]} did not answer in {patience.seconds:g} s (collector.timeout).")
            kind, value = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died(i) from error
        if kind == _FAILED:
            worker = self._workers[i]
            raise self._fail(f"{worker.name} failed in process {worker.pid}:\n{value}")
        if kind == _NOT_MADE:
            self._fail(f"{self._workers[i].name}: {value}")
            raise value
        return kind == _RAISED, value

    def _died(self, i: int) -> Exception:
        if self._failure is not None:
            return self._error(self._failure)
        with suppress(EOFError, OSError):
            while i not in self._exit_codes and self._control.poll(5):
                message = self._control.recv()
                if isinstance(message, list):
                    self._found = [Worker(*one) for one in zip(self._names, message, self._pipes, strict=True)]
                else:
                    self._exit_codes.update([message])
        code = self._exit_codes.get(i, "unknown")
        return self._fail(f"{self._workers[i]} died with exit code {code}.")

    def _fail(self, message: str) -> Exception:
        self._failure = message
        self._hang_up()
        return self._error(message)

    def _hang_up(self) -> None:
        for end in (*self._pipes, self._control):
            end.close()


class Patience:
    """How long to wait for answers. What passes while this process itself is stopped (Ctrl-Z, SIGSTOP) does not count.

    Args:
        seconds: to wait in all; None is for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self._left = self.seconds

    def outlasts(self, pipe: Connection) -> bool:
        """Wait until there is something to receive; false where it takes longer than is left."""
        while True:
            turn, start = min(max(self._left, 0.0), _TURN), time.monotonic()
            ready = pipe.poll(turn)
            self._left -= min(time.monotonic() - start, turn)
            if ready or self._left <= 0:
                return ready


def _start_program(control_fd: int, pipe_fds: Sequence[int], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start `fork_workers` in a new interpreter that has this one's path and these file descriptors."""
    program = (
        f"import sys; sys.path[:] = {[str(path) for path in sys.path]}\n"
        f"from rlexp.workers import fork_workers; fork_workers({control_fd}, {[*pipe_fds]})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[control_fd, *pipe_fds, *fds]
    )


_ANSWERED, _RAISED, _NOT_MADE, _FAILED = range(4)
_BUSY_WAIT = 1e-3  # seconds
_TURN = 1.0  # seconds
_GRACE = 3.0  # seconds
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _busy_wait(poll: select.poll) -> None:
    """Wait for a message without sleeping at once: to wake a process can take longer than a simulator's step."""
    give_up = time.perf_counter() + _BUSY_WAIT
    while not poll.poll(0) and time.perf_counter() < give_up:
        os.sched_yield()


def fork_workers(control_fd: int, pipe_fds: Sequence[int]) -> None:
    """Fork a worker for each pipe, report their exit codes, and end with the last of them."""
    for number in _STOPS:
        # They reach the whole process group, and the main process decides. A handler and not SIG_IGN, which programs
        # that a simulator starts would inherit.
        signal.signal(number, lambda *_: None)
    control = Connection(control_fd)
    try:
        modules, requests = pickle.loads(control.recv_bytes())
    except (EOFError, OSError):
        return
    for module in modules:
        with suppress(Exception):  # whoever needs it fails by itself, and says so
            importlib.import_module(module)
    pids: list[int] = []
    for fd, request in zip(pipe_fds, requests, strict=True):
        if (pid := os.fork()) == 0:
            _run_worker([control_fd, *(other for other in pipe_fds if other != fd)], Connection(fd), request)
        pids.append(pid)
    for fd in pipe_fds:
        os.close(fd)
    with suppress(OSError):
        control.send(pids)
    living = set(pids)
    Thread(target=_end_with_main, args=(control, living), daemon=True).start()
    while living:
        pid, status = os.wait()
        living.discard(pid)
        with suppress(OSError, ValueError):
            control.send((pids.index(pid), os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _end_with_main(control: Connection, living: set[int]) -> None:
    """Kill the workers that are left some time after the main process has hung up or died."""
    with suppress(EOFError, OSError):
        control.recv_bytes()
    time.sleep(_GRACE)
    for pid in list(living):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _run_worker(close_fds: Sequence[int], pipe: Connection, request: bytes) -> None:
    """The whole life of a worker process; does not return."""
    code = 1
    try:
        for fd in close_fds:
            os.close(fd)
        _answer_calls(pipe, request)
        code = 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _answer_calls(pipe: Connection, request: bytes) -> None:
    """Answer calls until the other end of the pipe is gone, as it is too when the main process was killed."""
    served: Any = None
    passed_on: tuple[type[Exception], ...] = ()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    try:
        target, arguments, passed_on = pickle.loads(request)
        served = target(*arguments)
        while (message := _next(pipe, poll)) is not None:
            method, arguments = pickle.loads(message)
            try:
                answer = (_ANSWERED, getattr(served, method)(*arguments))
            except passed_on as error:
                answer = (_RAISED, error)
            _reply(pipe, answer)
    except passed_on as error:
        _reply(pipe, (_NOT_MADE, error))
    except BaseException:  # a simulator's sys.exit() too
        _reply(pipe, (_FAILED, traceback.format_exc()))
    finally:
        if served is not None:
            served.close()


def _next(pipe: Connection, poll: select.poll) -> bytes | None:
    _busy_wait(poll)
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None


def _reply(pipe: Connection, answer: tuple[int, Any]) -> None:
    message = pickle.dumps(answer)
    with suppress(OSError):  # the main process is gone, as the next read shows
        pipe.send_bytes(message)
