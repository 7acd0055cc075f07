"""What of the machine a run takes: device, threads, a compiler where it earns its time back, and CUDA graphs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rlexp.collectors import WorkersSpec
from rlexp.config import ConfigError, Problem
from rlexp.envs import EnvSpec
from rlexp.experiment import Experiment
from rlexp.runs.rundir import usable_cpus
from rlexp.seeding import unmoved_generators

log = logging.getLogger(__name__)

# Compiling takes about half a minute, and saves about half a millisecond a minibatch of some hundred steps.
_WORTH_COMPILING = 100_000

Step: TypeAlias = "Callable[[dict[str, Tensor]], dict[str, Tensor]]"


def pick_device(name: str) -> torch.device:
    """The device that the ``device`` setting means.

    Raises:
        ConfigError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        available = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ConfigError([Problem("device", f"there is no such device. Available: {available}.", name)])
    return device


def cores() -> int:
    """Cores that this run may use: those of this process, and no more than ``OMP_NUM_THREADS``.

    By that variable launchers share cores out among jobs.
    """
    return min(usable_cpus(), int(os.environ.get("OMP_NUM_THREADS") or usable_cpus()))


def share_out(experiment: Experiment) -> EnvSpec:
    """The environment with the number that ``env.num_workers=auto`` stands for, which is said.

    Where a collector shares the simulators out, there is one worker in each of its processes.

    Raises:
        ConfigError: a simulator cannot be made.
    """
    if isinstance(experiment.collector, WorkersSpec):
        return experiment.env
    with unmoved_generators():
        return experiment.env.shared_out(experiment.total_frames, cores())


def set_threads(experiment: Experiment, weights: int) -> int:
    """Set torch's thread count as ``threads`` says, and return it.

    ``auto`` takes one thread for every 32 million multiply-adds of a minibatch's forward: with less to do, waking a
    thread costs more than it saves, and threads that wait for work spin on the cores that other jobs need. It stays
    within `cores`, and leaves one to each process that works while torch does. Those of ``env.num_workers`` do not.

    Args:
        experiment: its ``threads``, ``minibatch_size`` and ``collector``.
        weights: of all networks.
    """
    if experiment.threads == "auto":
        free = max(1, cores() - experiment.collector.busy_while_learning)
        count = max(1, min(free, weights * experiment.minibatch_size // 2**25))
        log.info("threads=auto: %d of %d, for %s weights and minibatches of %s steps",
                 count, free, f"{weights:,}", f"{experiment.minibatch_size:,}")  # fmt: skip
    else:
        count = int(experiment.threads)
    torch.set_num_threads(count)
    return count


def use_compiler(experiment: Experiment, device: torch.device) -> bool:
    """Whether to compile a loss that could be compiled, as ``compile`` says; ``auto`` says what it decided.

    ``auto`` does where the run has so many minibatches that the half minute which it takes is earned back.

    Args:
        experiment: its ``compile``, and what decides how many minibatches there are.
        device: what it is compiled for.

    Raises:
        ConfigError: it is to be compiled for the CPU, and there is no C++ compiler.
    """
    if experiment.compile is False:
        return False
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    missing = device.type == "cpu" and not any(shutil.which(name) for name in compilers if name)
    if experiment.compile is True:
        if missing:
            message = "needs a C++ compiler on the CPU: install g++ or clang++, name one in CXX, or use compile=false."
            raise ConfigError([Problem("compile", message, "true")])
        return True
    minibatches = experiment.num_batches * experiment.num_epochs * experiment.minibatches_per_epoch
    compiled = minibatches >= _WORTH_COMPILING and not missing
    reason = "there is no C++ compiler" if missing else f"{minibatches:,} minibatches"
    log.info("compile=auto: %s, %s", "yes" if compiled else "no", reason)
    return compiled


class GraphedStep:
    """A step of training that CUDA runs as one graph, without a launch a kernel (``torch.cuda.graph``).

    A graph repeats its kernels on the memory that they were captured with, and what were numbers of Python's are
    constants of it. So each minibatch is copied to where the first one lay, and a graph serves until `renewed`.

    Args:
        step: from a minibatch to what it records; minibatches are of one shape, and no result is waited for.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._warm_up = 3  # steps, as the documentation of torch.cuda.graph has it
        self._graph: torch.cuda.CUDAGraph | None = None
        self._minibatch: dict[str, Tensor] = {}
        self._record: dict[str, Tensor] = {}

    def renewed(self) -> GraphedStep:
        """Itself, with a graph yet to be captured: constants such as the learning rate are others now."""
        self._graph = None
        return self

    def __call__(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make a step, and return what it recorded."""
        if self._warm_up:
            self._warm_up -= 1
            return self._aside(minibatch)
        if not self._minibatch:
            self._minibatch = {name: value.clone() for name, value in minibatch.items()}
        for name, value in minibatch.items():
            self._minibatch[name].copy_(value)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._record = self._step(self._minibatch)
        self._graph.replay()
        return {name: value.clone() for name, value in self._record.items()}

    def _aside(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step as it is, on a stream of its own: libraries set themselves up, and capture allows for none of it."""
        stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            record = self._step(minibatch)
        main.wait_stream(stream)
        return record
