"""What of the machine a run takes: ``threads=auto`` and ``compile=auto``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.hardware import set_threads, use_compiler


@pytest.fixture(autouse=True)
def _threads_of_the_other_tests() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("weights", "omp", "expected"),
    [(10_000, None, 1), (10_000_000, "3", 3), (10_000_000, "1", 1), (600_000, "8", 4)],
    ids=["small", "within_omp", "omp_one", "by_work"],
)
def test_auto_goes_by_the_work_and_stays_within_the_cores(
    weights: int, omp: str | None, expected: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    with caplog.at_level("INFO", logger="rlexp"):
        assert set_threads(load_config(["minibatch_size=256"]), weights) == torch.get_num_threads() == expected
    assert f"threads=auto: {expected} of" in caplog.text


def test_auto_takes_no_more_than_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set_threads(load_config(), 10**9) == len(os.sched_getaffinity(0))


def test_a_number_is_taken_as_it_is() -> None:
    assert set_threads(load_config(["threads=2"]), 10) == torch.get_num_threads() == 2


CPU = torch.device("cpu")


@pytest.mark.parametrize(("frames", "expected"), [(100_000, False), (20_000_000, True)], ids=["short", "long"])
def test_auto_compiles_where_the_run_is_long(frames: int, expected: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rlexp"):
        assert use_compiler(load_config([f"total_frames={frames}"]), torch.device("cuda")) is expected
    assert f"compile=auto: {'yes' if expected else 'no'}" in caplog.text


def test_without_a_compiler_auto_does_without_and_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not use_compiler(load_config(["total_frames=20_000_000"]), CPU)
    with pytest.raises(ConfigError, match=r"install g\+\+ or clang\+\+"):
        use_compiler(load_config(["compile=true"]), CPU)
