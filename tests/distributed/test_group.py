"""Several learners of one run: they are one learner in several processes, and none goes on without the others."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from agents import composed
from commands import TINY, alive, console_script, rows_of, start_command
from ranks import (
    break_second,
    differ,
    launch_ranks,
    output,
    serve_store,
    start_alike,
    train_ranks,
    variables,
    wait_silently,
)
from safetensors.torch import save as to_bytes
from warm import processes

from rlexp.cli.train import train
from rlexp.collectors import SyncCollectorConfig
from rlexp.config import ConfigError
from rlexp.runs import checkpoint
from rlexp.runs.packing import pack

# A constant schedule, so that runs of other lengths begin alike; a squashed Gaussian's entropy draws in the update.
RUN = [*TINY, "logger=none", "hydra.run.dir=run", "optim.schedule=constant", "checkpoint.keep_last=100"]
DRAWS = ["loss.entropy_coeff=0.01", "checkpoint.interval=256"]
LONG = [*RUN, *DRAWS, "total_frames=1_000_000", "evaluation.interval=1_000_000"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two learners."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    train_ranks([*RUN, *DRAWS], cwd)
    return cwd / "run"


UPDATES = {
    "default": [],
    "small minibatches, some with no step of one learner": ["minibatch_size=3", "num_epochs=1", "loss=kl_ppo"],
    "normalised over the batch": ["loss.average_gae=true", "loss.normalize_value=true", "loss.clip_value=0.2"],
    "critic apart": ["critic_num_epochs=3", "target_kl=0.003", "target_kl_check=minibatch", "optim.lr=3e-3"],
    "recurrent": ["policy=gru", "policy.sequence_length=4", "policy.num_cells=[16]", "policy.hidden_size=8"],
}


@pytest.mark.parametrize("name", UPDATES)
def test_two_learners_are_one_in_two_processes(name: str, tmp_path: Path) -> None:
    short = ["total_frames=512", "evaluation.interval=512", *UPDATES[name]]
    for size in (1, 2):
        (tmp_path / f"{size}").mkdir()
        train_ranks([*RUN, *short], tmp_path / f"{size}", size, start_alike)
    one, first, second = (torch.load(tmp_path / path) for path in ("1/rank0.pt", "2/rank0.pt", "2/rank1.pt"))
    check_equal(first, second)
    check_close(one, first)
    alone, together = rows_of(tmp_path / "1" / "run"), rows_of(tmp_path / "2" / "run")
    for row, other in zip(alone, together, strict=True):
        row.pop("train/parameters_hash"), other.pop("train/parameters_hash")
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)


def test_what_simulators_draw_and_evaluations_do_parts_no_learners(tmp_path: Path) -> None:
    """Minibatches are drawn alike by both, although environments seed and draw from torch's generator."""
    own = ["env=gym", "env.id=drawing:Drawing-v0", "env/transforms=none", "loss.entropy_coeff=0.01"]
    for name, interval in (("seldom", 512), ("often", 128)):
        (tmp_path / name).mkdir()
        train_ranks([*RUN, *own, "total_frames=512", f"evaluation.interval={interval}"], tmp_path / name)
    seldom, often = (rows_of(tmp_path / name / "run") for name in ("seldom", "often"))
    assert [row["train/parameters_hash"] for row in seldom] == [row["train/parameters_hash"] for row in often]


def check_equal(one: Any, other: Any) -> None:
    """Equal bit for bit."""
    assert pack(one)[0] == pack(other)[0]
    assert to_bytes(pack(one)[1]) == to_bytes(pack(other)[1])


def check_close(one: Any, other: Any) -> None:
    """Equal but for rounding."""
    ours, theirs = pack(one)[1], pack(other)[1]
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_same_again_to_the_bit(undisturbed: Path, tmp_path: Path) -> None:
    train_ranks([*RUN, *DRAWS], tmp_path)
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)
    for file in ("state.json", "tensors.safetensors"):
        again, before = (run / "checkpoints" / "000000001024" / file for run in (tmp_path / "run", undisturbed))
        assert again.read_bytes() == before.read_bytes()
    assert json.loads((undisturbed / "metadata.json").read_text())["learners"] == 2


def test_a_learner_that_is_killed_ends_all_and_the_run_resumes_exactly(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = launch_ranks(LONG, tmp_path)
    wait_for(lambda: rows_so_far(tmp_path) >= 2, started)
    os.kill(started[1].pid or 0, signal.SIGKILL)
    started[0].join(60)
    assert started[0].exitcode == 1
    died = f"rank 1 of 2 has died (process {started[1].pid} on "
    assert died in output(tmp_path, 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert died in summary["error"]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"2 learners, and now there would be 1 learner.*torchrun --nproc-per-node=2"):
        train(["resume=run"])
    budget = ["total_frames=1024", "evaluation.interval=512"]
    train_ranks(["resume=run/checkpoints/000000000256", *budget], tmp_path)
    assert rows_of(tmp_path / "run") == rows_of(undisturbed)
    for file in ("state.json", "tensors.safetensors"):
        resumed, before = (run / "checkpoints" / "000000001024" / file for run in (tmp_path / "run", undisturbed))
        assert resumed.read_bytes() == before.read_bytes()


def test_a_run_of_one_learner_is_no_run_of_two(tiny_run: Path, tmp_path: Path) -> None:
    started = launch_ranks([f"resume={tiny_run}", "total_frames=2048"], tmp_path)
    for process in started:
        process.join(60)
        assert process.exitcode == 2
    assert "was trained by 1 learner, and now there would be 2 learners" in output(tmp_path, 0)
    assert "Resume it with rlexp-train, or" in output(tmp_path, 0)
    assert output(tmp_path, 1).startswith("rlexp-train, rank 1 of 2: ")


def test_a_signal_to_one_learner_has_all_save_and_stop(tmp_path: Path) -> None:
    started = launch_ranks(LONG, tmp_path)
    wait_for(lambda: rows_so_far(tmp_path) >= 1, started)
    os.kill(started[1].pid or 0, signal.SIGTERM)
    for process in started:
        process.join(60)
        assert process.exitcode == 143
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert checkpoint.load(tmp_path / "run").state.frames == rows_of(tmp_path / "run")[-1]["frames"]
    assert "torchrun --nproc-per-node=2 --no-python rlexp-train resume=" in output(tmp_path, 0)


def test_a_learner_that_fails_ends_all_with_its_reason(tmp_path: Path) -> None:
    started = launch_ranks(LONG, tmp_path, prepare=break_second)
    for process in started:
        process.join(60)
        assert process.exitcode == 1
    reason = "next.reward is not finite (NaN or infinity) at 512 frames."
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["error"] == f"GroupError: rank 1 of 2 failed: TrainingError: {reason}"
    assert reason in output(tmp_path, 1)
    assert [row["frames"] for row in rows_of(tmp_path / "run")] == [256]


def test_learners_whose_weights_differ_do_not_go_on(tmp_path: Path) -> None:
    started = launch_ranks(LONG, tmp_path, prepare=differ)
    for rank, process in enumerate(started):
        process.join(60)
        assert process.exitcode == 1
        assert "At 256 frames the weights of rank 1 of 2 differ from those of rank 0." in output(tmp_path, rank)


def test_a_learner_that_hangs_is_named() -> None:
    port = serve_store()
    pipes = [processes.Pipe() for _ in range(2)]
    started = [processes.Process(target=wait_silently, args=(rank, port, pipes[rank][1])) for rank in range(2)]
    for process in started:
        process.start()
    ours = pipes[0][0]
    assert ours.poll(60)
    assert f"rank 1 of 2 (process {started[1].pid} on " in (said := ours.recv())
    assert "no answer from rank 1" in said
    pipes[1][0].send("")
    for process in started:
        process.join(60)


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["env.num_envs=4"], "env.num_envs", "multiple of 3, so that each of the learners simulates as many: 3 or 6."),
        (["env.num_envs=2"], "env.num_envs", "as many: 3."),
        (["loss=trpo"], "loss", "such as loss=clip_ppo"),
        (["collector=multi_sync", "collector.num_workers=1"], "collector", "must be sync with several learners"),
        (["kernels=false"], "kernels", "must be auto with several learners"),
        (["compile=true"], "compile", "must be false"),
        (["cuda_graph=true"], "cuda_graph", "must be false"),
        (["checks=true"], "checks", "must be false"),
        (["callbacks.mine._target_=collections.Counter"], "callbacks", "must be empty"),
        (["device=cuda:1"], "device", "LOCAL_RANK"),
    ],
)
def test_what_several_learners_cannot_train_is_refused(overrides: list[str], key: str, said: str) -> None:
    config = composed("env.num_envs=6", "collector.frames_per_batch=252", "minibatch_size=64", *overrides)
    assert not list(config.problems_for(1))
    (problem,) = config.problems_for(3)
    assert (problem.key, said in problem.message) == (key, True), problem


@pytest.mark.parametrize(("overrides", "key"), [(["loss=rpo"], "loss"), (["policy=beta"], "collector")])
def test_what_has_no_kernel_is_refused(overrides: list[str], key: str, tmp_path: Path) -> None:
    started = launch_ranks([*RUN, *overrides], tmp_path)
    for rank, process in enumerate(started):
        process.join(60)
        assert process.exitcode == 2, output(tmp_path, rank)
    assert f"\n  {key}=" in output(tmp_path, 0)
    assert "several learners" in output(tmp_path, 0)
    assert not (tmp_path / "run").exists()


def test_commands_that_train_many_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="trains many runs"):
        train(["--multirun", "seed=0,1"])


def test_a_share_of_a_config() -> None:
    config = composed("env.num_envs=6", "collector.frames_per_batch=252", "minibatch_size=64")
    share = config.share(3)
    assert isinstance(share.collector, SyncCollectorConfig)
    assert (share.env.num_envs, share.collector.frames_per_batch, share.minibatch_size) == (2, 84, 64)


def test_torchrun_ends_all_when_one_is_killed(tmp_path: Path) -> None:
    trained = ["--no-python", console_script("rlexp-train"), *LONG]
    output = tmp_path / "output.txt"
    torchrun = start_command(
        "torchrun", "--standalone", "--nproc-per-node=2", *trained, cwd=tmp_path, stdout=output, stderr=output
    )
    try:
        wait_for(lambda: rows_so_far(tmp_path) >= 1, [torchrun])
        ranks = children(torchrun.pid or 0)
        first = int((tmp_path / "run" / ".lock").read_text().split()[1])
        (second,) = set(ranks) - {first}
        os.kill(second, signal.SIGKILL)
        torchrun.join(60)
        assert torchrun.exitcode == 1
    finally:
        torchrun.kill()
        torchrun.join()
    assert not any(map(alive, ranks))
    assert "rank 1 of 2 has died" in (tmp_path / "run" / "train.log").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def rows_so_far(cwd: Path) -> int:
    metrics = cwd / "run" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def wait_for(what: Any, started: list[Any]) -> None:
    deadline = time.monotonic() + 300  # torchrun's processes import everything anew
    while not what():
        assert time.monotonic() < deadline
        for process in started:
            assert process.exitcode is None
        time.sleep(0.02)
