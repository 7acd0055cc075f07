"""What of the machine a run takes: ``threads=auto``, ``env.num_workers=auto`` and ``compile=auto``."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from commands import TINY
from gymnasium.envs.registration import EnvSpec

from rlexp import Trainer, load_config, machine
from rlexp.config import ConfigError
from rlexp.envs.gymnasium.worker_count import best_workers
from rlexp.machine import process_state, set_threads, this_process, usable_cpus, use_compiler
from rlexp.seeding import seed_everything
from rlexp.training.parts import with_workers


@pytest.fixture(autouse=True)
def _threads_of_the_other_tests() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("weights", "omp", "expected"),
    [(10_000, None, 1), (10_000_000, "3", 3), (10_000_000, "1", 1), (600_000, "8", 4), (10_000_000, "2,1", 2)],
    ids=["small", "within_omp", "omp_one", "by_work", "omp_by_level"],
)
def test_auto_goes_by_the_work_and_stays_within_the_cores(
    weights: int, omp: str | None, expected: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("rlexp.machine.usable_cpus", lambda: 8)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    with caplog.at_level("INFO", logger="rlexp"):
        assert set_threads("auto", weights, 256, 0) == torch.get_num_threads() == expected
    assert f"threads=auto: {expected} of" in caplog.text


def test_auto_takes_no_more_threads_than_the_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set_threads("auto", 10**9, 64, 0) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000", 2), ("max 100000", 4), ("50000 100000", 1), ("", 4)])
def test_a_containers_share_of_the_cores_is_seen(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr("rlexp.machine._CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    assert usable_cpus() == cores
    monkeypatch.setattr("rlexp.machine._CPU_MAX", tmp_path / "missing")
    assert usable_cpus() == 4


@pytest.mark.parametrize(
    ("seconds", "num_envs", "cores", "steps", "expected"),
    [
        (50e-6, 16, 2, 6400, 2),  # saves 2.2 of 5.1 s
        (50e-6, 16, 2, 640, 1),  # a run too short to wait for a process
        (5e-6, 8, 2, 10**9, 1),  # simulators quicker than a message
        (1e-3, 16, 64, 6400, 16),  # no more than simulators
        (50e-6, 16, 64, 10**6, 4),  # each worker's messages cost time
    ],
)
def test_simulators_are_shared_out_where_that_pays(
    seconds: float, num_envs: int, cores: int, steps: int, expected: int
) -> None:
    assert best_workers(seconds, num_envs, cores, steps) == expected


class Counting(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """Counts the steps of all its simulators."""

    steps = 0
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Counting.steps += 1
        return np.zeros(1, np.float32), float(Counting.steps), False, False, {}


class TestShareOut:
    @pytest.fixture(autouse=True)
    def _three_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("rlexp.machine.usable_cpus", lambda: 3)

    def workers(self, *overrides: str) -> object:
        return with_workers(load_config(["env.backend=gymnasium", *overrides])).to_dict()["num_workers"]

    def test_a_long_run_is_shared_out_a_short_one_is_not(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="rlexp"):
            assert self.workers("env=humanoid", "total_frames=20_000_000") == 3
            assert self.workers("total_frames=1024") == 1
        said = r"env\.num_workers=auto: 3 of 3, since a simulator's step takes [\d,]+ us\n(.|\n)*auto: 1 of 3"
        assert re.search(said, caplog.text)

    def test_to_measure_moves_no_generator(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "drawing.py").write_text(
            "import gymnasium, numpy\n"
            "def make(**kwargs):\n"
            "    numpy.random.rand()\n"
            "    return gymnasium.make('Humanoid-v5', **kwargs)\n"
            "gymnasium.register('Drawing-v0', entry_point=make, max_episode_steps=100)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)

        def drawn() -> tuple[float, float, float]:
            return random.random(), np.random.rand(), torch.rand(()).item()

        seed_everything(1)
        expected = drawn()
        seed_everything(1)
        assert self.workers("env=gym", "env.id=drawing:Drawing-v0", "total_frames=20_000_000") == 3
        assert drawn() == expected

    def test_images_are_measured_as_they_are_observed(self) -> None:
        options = ["env=cartpole", "env.from_pixels=true", "env/transforms=none", "policy=cnn", "env.frame_skip=2"]
        assert self.workers(*options, "total_frames=20_480_000") == 3

    def test_a_number_is_taken_as_it_is(self) -> None:
        assert self.workers("env.num_workers=2", "total_frames=2048") == 2

    def test_within_omp_num_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert self.workers("env=humanoid", "total_frames=20_000_000") == 2

    @pytest.mark.parametrize("collector", ["multi_sync", "multi_async"])
    def test_collectors_that_share_out_themselves_are_left_to_it(self, collector: str) -> None:
        assert self.workers("env=humanoid", "total_frames=20_000_000", f"collector={collector}") == "auto"
        config = load_config([f"collector={collector}", "env.backend=gymnasium"])
        assert list(config.env.build_base(2).workers) == []

    def test_what_this_process_alone_has_registered_stays_in_it(self, caplog: pytest.LogCaptureFixture) -> None:
        gymnasium.register("Mine-v0", entry_point=lambda **_: gymnasium.make("Humanoid-v5"), max_episode_steps=9)
        try:
            with caplog.at_level("INFO", logger="rlexp"):
                assert self.workers("env=gym", "env.id=Mine-v0", "total_frames=20_000_000") == 1
        finally:
            del gymnasium.registry["Mine-v0"]
        assert "Mine-v0 is registered in this process alone" in caplog.text

    def test_so_does_what_was_registered_anew(self) -> None:
        stock = gymnasium.registry["Humanoid-v5"]
        for id, options in (("Humanoid-v5", {"healthy_reward": 9.0}), ("LongHumanoid-v0", {})):
            assert gymnasium.registry.get("LongHumanoid-v0") is None
            gymnasium.register(id, entry_point=stock.entry_point, kwargs=options, max_episode_steps=1000)
            try:
                assert self.workers("env=gym", f"env.id={id}", "env.backend=gymnasium", "total_frames=20_000_000") == 1
            finally:
                del gymnasium.registry[id]
                gymnasium.registry["Humanoid-v5"] = stock

    def test_what_a_class_counts_is_as_before_its_simulators_were_measured(self) -> None:
        spec = EnvSpec("Counting-v0", entry_point=Counting, max_episode_steps=9)
        gymnasium.registry["Counting-v0"] = spec
        try:
            base = load_config(["env=gym", "env.id=Counting-v0"]).env.build_base(1)
        finally:
            del gymnasium.registry["Counting-v0"]
        assert base.seconds_per_step() > 0
        assert Counting.steps == 0

    def test_envpool_takes_a_thread_a_core(self) -> None:
        pytest.importorskip("envpool", reason="the extra rlexp[envpool] is not installed")
        assert self.workers("env=hopper", "env.backend=envpool", "total_frames=2048") == 3

    def test_what_cannot_be_made_is_reported(self) -> None:
        with pytest.raises(ConfigError, match=r"env\.id=Humanoid-v5\n *cannot be made: (.|\n)*missing\.xml"):
            self.workers("env=humanoid", "env.kwargs.xml_file=missing.xml")

    def test_trainers_share_out_training_and_evaluation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rlexp.envs.gymnasium.worker_count.best_workers", lambda *_: 2)
        trainer = Trainer(load_config([*TINY, "logger=none", "env.backend=gymnasium"]), tmp_path)
        assert len(list(trainer.env.base_env.workers)) == len(list(trainer.evaluator.env.base_env.workers)) == 1
        assert trainer.config.env.to_dict()["num_workers"] == "auto"
        trainer.close()


def test_a_number_is_taken_as_it_is() -> None:
    assert set_threads(2, 10, 64, 0) == torch.get_num_threads() == 2


CPU = torch.device("cpu")


@pytest.mark.parametrize(("frames", "expected"), [(100_000, False), (20_000_000, True)], ids=["short", "long"])
def test_auto_compiles_where_the_run_is_long(frames: int, expected: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rlexp"):
        assert (
            use_compiler("auto", torch.device("cuda"), load_config([f"total_frames={frames}"]).num_minibatches)
            is expected
        )
    assert f"compile=auto: {'yes' if expected else 'no'}" in caplog.text


def test_without_a_compiler_auto_does_without_and_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not use_compiler("auto", CPU, 10**6)
    with pytest.raises(ConfigError, match=r"install g\+\+ or clang\+\+"):
        use_compiler(True, CPU, 10**6)


def test_a_runs_metadata_has_what_each_session_used(tiny_run: Path) -> None:
    (session,) = json.loads((tiny_run / "metadata.json").read_text())["sessions"]
    assert 100 < session["resources"]["peak_memory_mib"] < 10_000
    assert session["resources"]["cpu_seconds"] > 0


MEASURED = """
import json, subprocess, sys
from rlexp.machine import resource_use
code = "b = bytearray(200 * 2**20)\\nwhile __import__('time').process_time() < 1: pass\\nprint(flush=True); input()"
uses = [resource_use()]
with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
    child.stdout.readline()
    uses.append(resource_use())
    child.communicate("\\n")
print(json.dumps([*uses, resource_use()]))
"""


def test_memory_and_time_of_children_count() -> None:
    """In a process that has no other children."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    before, during, after = json.loads(done.stdout)
    if sys.platform == "linux":
        assert during["children_peak_memory_mib"] >= 200
        assert during["cpu_seconds"] - before["cpu_seconds"] > 0.85  # of 1, and each is rounded
    assert after["cpu_seconds"] - before["cpu_seconds"] > 0.85


@pytest.mark.parametrize(
    ("there", "state"),
    [
        ("m b p", "dead"),
        ("m another p", "dead"),  # restarted since
        ("- another p", "remote"),  # restarted since, or another machine: not known
        ("another b p", "remote"),
        ("m b another", "remote"),  # a container
        (None, "dead"),  # written by an earlier version
    ],
)
def test_a_process_is_dead_only_where_this_machine_can_tell(
    there: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = there is not None and there.startswith("-")
    monkeypatch.setattr(machine, "_here", lambda: ("-" if unknown else "m", "b", "p"))
    name = f"process 999999999 on {socket.gethostname()}"
    assert process_state(name if there is None else f"{name}\n{there}") == state
    assert process_state(f"process 999999999 on another-machine\n{there or 'm b p'}") == "remote"
    assert process_state(this_process()) == "alive"
    assert process_state("nobody") is None
