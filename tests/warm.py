"""Processes forked from one that has the imports behind it, which cost a cold process five seconds."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection
from pathlib import Path

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["preloaded"])

ADDRESS = "RLEXP_TESTS_WARM"  # the variable with the path of the warm process's socket
_held: list[Connection] = []  # as long as this process lives
_spawn = util.spawnv_passfds
_HIGH = 500  # above every file descriptor of a program


class WarmProgram:
    """What the caller of `start_program` sees of the process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._exit_code: int | None = None
        self.pid: int = pipe.recv()

    def wait(self) -> int:
        """Wait for its exit code."""
        if self._exit_code is None:
            with self._pipe:
                self._exit_code = int(self._pipe.recv())
        return self._exit_code


@cache
def start() -> str:
    """Start the warm process, which ends with this one, where it does not run yet; the path of its socket."""
    if ADDRESS not in os.environ:
        theirs, ours = multiprocessing.Pipe(duplex=False)
        _held.append(ours)
        os.environ[ADDRESS] = path = str(Path(tempfile.mkdtemp(prefix="warm_"), "socket"))
        with theirs, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            processes.Process(target=serve, args=(listener, theirs), daemon=True).start()
    return os.environ[ADDRESS]


def _start_fork_server() -> None:
    """Start it where it finds `preloaded`; before Python 3.13 it ignores this process's ``sys.path``, in silence."""
    if util.spawnv_passfds is not _spawn:  # in a command that was itself started warm
        _ensure_running()
        return
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        _ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


# Whichever process is the first to be forked.
_ensure_running = forkserver.ensure_running
vars(forkserver._forkserver)["ensure_running"] = _start_fork_server


def start_program(control_fd: int, pipe_fds: Sequence[int], fds: Sequence[int]) -> WarmProgram:
    """As `rlexp.workers._start_program`, forked from the warm process."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(start())
    numbers = [control_fd, *pipe_fds, *fds, 1, 2]
    socket.send_fds(connection, [b"."], numbers)
    pipe = Connection(connection.detach())
    pipe.send((numbers, len(pipe_fds), [str(path) for path in sys.path], str(Path.cwd()), dict(os.environ)))
    return WarmProgram(pipe)


def start_job_server(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """As `multiprocessing.util.spawnv_passfds`; the server of a sweep's jobs is forked from the sweep's process."""
    if not str(arguments[-1]).startswith("from multiprocessing.forkserver import main"):  # joblib's are bytes
        return _spawn(path, arguments, passed)
    if (pid := os.fork()) == 0:
        try:
            kept = sorted({0, 1, 2, *passed})
            for fd, following in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
                os.closerange(fd + 1, following)  # the lock of the sweep among them
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            exec(arguments[-1], {})
        finally:
            os._exit(0)
    return pid


def serve(listener: socket.socket, alive: Connection) -> None:
    """Fork a program for each that connects, until the other end of ``alive`` is gone."""
    with listener:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for programs
        while alive.fileno() not in select.select([listener.fileno(), alive.fileno()], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    _run(connection)


def _run(connection: socket.socket) -> None:
    """Run a program in a process of its own and report its exit code; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(BaseException):
        _, received, *_ = socket.recv_fds(connection, 1, 250)
        pipe = Connection(connection.detach())
        numbers, pipes, path, cwd, environment = pipe.recv()
        if (pid := os.fork()) == 0:
            _become(received, numbers, path, cwd, environment)
            from rlexp.workers import fork_workers

            fork_workers(numbers[0], numbers[1 : 1 + pipes])
            os._exit(0)
        for fd in received:
            os.close(fd)
        pipe.send(pid)
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(
    received: Sequence[int], numbers: Sequence[int], path: list[str], cwd: str, environment: dict[str, str]
) -> None:
    """Make of this process what a new interpreter that inherits the file descriptors would be."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in received]
    for fd in received:
        os.close(fd)
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:] = path
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
