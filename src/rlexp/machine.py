"""What a run takes of the machine: its device, cores and threads, and whether compiling pays; processes by name."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlexp.config import ConfigError, Problem

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
# Compiling takes about half a minute, and saves about half a millisecond per minibatch of some hundred steps.
_WORTH_COMPILING = 100_000


def pick_device(name: str) -> torch.device:
    """The device that the setting ``device`` names.

    Raises:
        ConfigError: the machine does not have it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        available = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ConfigError([Problem("device", f"there is no such device. Available: {available}.", name)])
    return device


def local_device(name: str) -> torch.device:
    """The device that the setting ``device`` names for this process, one of several that torchrun has started.

    Raises:
        ConfigError: the machine has fewer GPUs than processes.
    """
    kind, local = pick_device(name).type, os.environ.get("LOCAL_RANK", "0")
    try:
        return pick_device(f"cuda:{local}" if kind == "cuda" else kind)
    except ConfigError as error:
        message = (
            "each learner needs a GPU of its own: torchrun --nproc-per-node with no more than there are, or device=cpu."
        )
        raise ConfigError([Problem("device", message, name)]) from error


def usable_cpus() -> int:
    """Processors that this process may use, within a container's share of them (``cpu.max`` of its control group)."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else max(1, min(available, int(quota) // int(period)))


def cores() -> int:
    """Cores that this run may use: `usable_cpus`, and no more than ``OMP_NUM_THREADS``, of a list its first number.

    Launchers divide the cores among jobs with that variable.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(usable_cpus(), int(given)) if given.isdecimal() and int(given) else usable_cpus()


def useful_threads(multiply_adds: int) -> int:
    """How many of torch's threads a forward pass of so many multiply-adds is worth: one per 32 million, at least one.

    With less to do, waking a thread costs more than it saves, and a thread that waits for work spins on a core that
    simulators or other jobs need.
    """
    return max(1, multiply_adds // 2**25)


def set_threads(threads: int | Literal["auto"], weights: int, minibatch_size: int, busy: int) -> int:
    """Set and return torch's number of threads.

    ``auto`` takes what a minibatch's forward pass is worth (`useful_threads`), within `cores`, and leaves one to each
    process that collects while the learner learns.

    Args:
        threads: the setting.
        weights: parameters of all networks.
        minibatch_size: agent steps of one minibatch.
        busy: processes that collect while the learner learns.
    """
    import torch

    if threads == "auto":
        count = min(max(1, cores() - busy), useful_threads(weights * minibatch_size))
        log.info("threads=auto: %d of %d, for %s weights and minibatches of %s steps",
                 count, max(1, cores() - busy), f"{weights:,}", f"{minibatch_size:,}")  # fmt: skip
    else:
        count = int(threads)
    torch.set_num_threads(count)
    return count


@contextmanager
def at_most_threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses so many threads at most; None leaves their number as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resource_use() -> dict[str, float]:
    """What this process has used of the machine since it began, and the processes that it started.

    Returns:
        ``peak_memory_mib`` of this process, and ``cpu_seconds`` of it and of its child processes; outside Linux, of
        those that have ended alone. On Linux, where a child is alive, also ``children_peak_memory_mib``, the sum over
        them, in which memory that several share is counted for each.
    """
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss
    found = {"peak_memory_mib": own.ru_maxrss / unit}
    cpu = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    alive = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            alive += path.read_text(encoding="utf-8").split()
    if alive:
        found["children_peak_memory_mib"] = 0.0
    for pid in alive:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        except OSError:  # it has just ended
            continue
        cpu += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
            found["children_peak_memory_mib"] += int(peak[1]) / 2**10
    return {key: round(value, 1) for key, value in (found | {"cpu_seconds": cpu}).items()}


def this_process() -> str:
    """This process, for `process_state` on any machine: a line for people, and one that tells machines apart."""
    return f"process {os.getpid()} on {socket.gethostname()}\n{' '.join(_here())}"


def process_state(name: str) -> Literal["alive", "dead", "remote"] | None:
    """The state of a process that `this_process` named.

    Returns:
        ``remote`` for one of another machine or container, which cannot be checked; None where it names no process.
    """
    found = re.fullmatch(r"process (\d{1,9}) on (.+)(?:\n(\S+) (\S+) (\S+))?", name.strip())
    if found is None:
        return None
    pid, host, *there = found.groups()
    if host != socket.gethostname():
        return "remote"
    if there != [None] * 3:  # earlier versions wrote the first line alone
        (machine, boot, pids), here = there, _here()
        if machine != here[0]:
            return "remote"
        if boot != here[1]:  # this machine has been restarted, or it is another one of the same name
            return "remote" if machine == "-" else "dead"
        if pids != here[2]:
            return "remote"
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return "dead"
    except PermissionError:  # a process of another user
        pass
    return "alive"


def _here() -> tuple[str, str, str]:
    """The machine, its start, and the container whose process ids these are; ``-`` where that is not known."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    machine, boot = read("/etc/machine-id"), read("/proc/sys/kernel/random/boot_id")
    try:
        pids = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        pids = ""
    # machine-id(5): the number itself must not be published.
    hashed = hashlib.sha256(f"rlexp {machine}".encode()).hexdigest()[:16] if machine else ""
    return hashed or "-", boot or "-", pids or "-"


def use_compiler(setting: bool | Literal["auto"], device: torch.device, minibatches: int) -> bool:
    """Whether to compile a loss that could be compiled.

    Args:
        setting: ``compile``; ``auto`` compiles where the run has so many minibatches that it saves the half minute
            which compiling takes, and logs what it decided.
        device: what the loss is compiled for.
        minibatches: of the whole run.

    Raises:
        ConfigError: it is to be compiled for the CPU, and there is no C++ compiler.
    """
    if setting is False:
        return False
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    missing = device.type == "cpu" and not any(shutil.which(name) for name in compilers if name)
    if setting is True:
        if missing:
            message = "needs a C++ compiler on the CPU: install g++ or clang++, name one in CXX, or use compile=false."
            raise ConfigError([Problem("compile", message, "true")])
        return True
    compiled = minibatches >= _WORTH_COMPILING and not missing
    reason = "there is no C++ compiler" if missing else f"{minibatches:,} minibatches"
    log.info("compile=auto: %s, %s", "yes" if compiled else "no", reason)
    return compiled
