"""Worker processes: what they answer, how their failures are reported, and that none outlives its owner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import warm
from commands import alive
from worker_subject import Subject

from rlexp import Trainer, load_config
from rlexp.config import ConfigError
from rlexp.envs.gymnasium.batched import BatchedGymEnv
from rlexp.workers import WorkerError, Workers


@pytest.fixture
def owned() -> Iterator[list[Workers]]:
    """Workers that are closed whatever a test finds."""
    owned: list[Workers] = []
    yield owned
    for workers in owned:
        workers.close()


def start(owned: list[Workers], *faults: str) -> Workers:
    arguments = {f"worker {i}": (i, fault) for i, fault in enumerate(faults)}
    owned.append(Workers(Subject, arguments, passed_on=(ValueError,)))
    return owned[-1]


def test_answers_come_in_the_order_of_the_calls_and_some_exceptions_pass(owned: list[Workers]) -> None:
    workers = start(owned, "", "", "")
    workers.ask("add", 10)
    assert workers.answers() == [10, 11, 12]
    workers.ask_each("add", {2: (5,), 0: (7,)})
    assert workers.answers() == [7, 7]
    workers.ask("refuse")
    with pytest.raises(ValueError, match="0 is refused"):
        workers.answers()
    workers.ask("add", 1)
    assert workers.answers() == [1, 2, 3]


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("exception", r"worker 1 failed in process \d+:(.|\n)*ZeroDivisionError"),
        ("end of file", r"worker 1 failed in process \d+:(.|\n)*EOFError: of a file"),
        ("sys.exit", r"worker 1 failed in process \d+:(.|\n)*SystemExit: 0"),
        ("os._exit", r"worker 1, process \d+, died with exit code 3\."),
        ("kill", r"worker 1, process \d+, died with exit code -9\."),
        ("hang", r"worker 1, process \d+, did not answer in 2 s \(collector\.timeout\)\."),
    ],
)
def test_a_failure_is_reported_by_name_and_ends_all(fault: str, reported: str, owned: list[Workers]) -> None:
    workers = start(owned, "", "")
    workers.ask("add", 0)
    workers.answers()
    pids = workers.pids
    workers.ask_each("fail", {0: ("nothing",), 1: (fault,)})
    with pytest.raises(WorkerError, match=reported):
        workers.answers(timeout=2)
    with pytest.raises(WorkerError, match=reported):
        workers.ask("add", 1)
    workers.close()
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("fault", "kind", "reported"),
    [("refused", ValueError, "1 is refused"), ("broken", WorkerError, r"worker 1 failed(.|\n)*ZeroDivisionError")],
)
def test_an_object_that_cannot_be_made_leaves_no_process(
    fault: str, kind: type[Exception], reported: str, owned: list[Workers]
) -> None:
    workers = start(owned, "", fault, "")
    pids = workers.pids
    with pytest.raises(kind, match=reported):  # noqa: PT012 - by the one or the other, as it died sooner or later
        workers.ask("add", 0)
        workers.answers()
    assert_end(pids)  # without being closed


def test_stop_signals_are_the_main_processs_to_answer(owned: list[Workers]) -> None:
    workers = start(owned, "", "")
    for pid in [*workers.pids, workers._program.pid]:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    workers.ask("add", 1)
    assert workers.answers() == [1, 2]


def test_objects_are_closed(tmp_path: Path) -> None:
    workers = Workers(Subject, {"one": (1, "", str(tmp_path / "mark"))})
    pids = workers.pids
    workers.close()
    assert (tmp_path / "mark").read_text() == "closed"
    assert not any(map(alive, pids))


SCRIPT = """
print("the script runs", flush=True)
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from rlexp.workers import Workers
from commands import alive
from worker_subject import Subject
workers = Workers(Subject, {{"one": (1,), "two": (2,)}})
workers.ask("add", 1)
assert workers.answers() == [2, 3]
print(*workers.pids, flush=True)
if {killed}:
    workers.ask("fail", "hang")
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_scripts_run_once_and_their_workers_end_with_them(killed: bool, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent), killed=killed))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
    first, pids = done.stdout.splitlines()
    assert first == "the script runs"
    assert_end([int(pid) for pid in pids.split()])


BRITTLE = """
import os
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Brittle(PendulumEnv):
    def __init__(self, first, **kwargs):
        if os.getpid() != first:
            raise OSError("no licence for another simulator")
        super().__init__(**kwargs)

gymnasium.register("Brittle-v0", Brittle, max_episode_steps=20)
"""


@pytest.mark.parametrize("overrides", [["env.num_workers=3"], ["collector=multi_sync", "collector.num_workers=2"]])
def test_a_trainer_whose_workers_cannot_make_their_simulators_leaves_none(
    overrides: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brittle.py").write_text(BRITTLE)
    monkeypatch.syspath_prepend(tmp_path)
    warm.start()  # which is one of them
    before = children()
    config = load_config(
        [
            *("env=gym", "env.id=brittle:Brittle-v0", f"env.kwargs.first={os.getpid()}", "env.num_envs=4"),
            *("collector.frames_per_batch=64", "minibatch_size=32", "logger=none", "threads=1", *overrides),
        ]
    )
    with pytest.raises(ConfigError, match=r"env\.id=brittle:Brittle-v0(.|\n)*cannot be made: no licence"):
        Trainer(config, tmp_path / "run")
    assert children() <= before


def test_an_environment_whose_space_is_refused_leaves_no_process_and_no_simulator() -> None:
    warm.start()  # which is one of them
    before = children()
    with pytest.raises(ConfigError, match="cannot be made"):
        BatchedGymEnv("Pendulum-v1", num_envs=2, num_workers=2, kwargs={"unknown": 1})
    assert children() <= before


def test_what_only_this_process_knows_is_refused_before_workers_start() -> None:
    import gymnasium

    gymnasium.register("Mine-v0", lambda: None, max_episode_steps=5)
    mine = ["env=gym", "env.id=Mine-v0", "env.num_envs=4"]
    try:
        for option, key in (("env.num_workers=2", "env.num_workers=2"), ("collector=multi_sync", "env.id=Mine-v0")):
            with pytest.raises(ConfigError, match=rf"{re.escape(key)}(.|\n)*env\.id=my_module:Mine-v0"):
                load_config([*mine, option])
    finally:
        del gymnasium.registry["Mine-v0"]


def children() -> set[int]:
    """The processes that this one has started and that have not been waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def assert_end(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + 15
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
