"""Collectors of several processes: what they collect, with whose weights and statistics, and how they end."""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import warm
from collected import SMALL, die_while_workers_work, trainer
from commands import alive, complete, launch
from torch import Tensor
from warm import processes

from rlexp import Trainer, load_config
from rlexp.collectors import Source, SyncCollectorConfig
from rlexp.collectors.multi import MultiCollector
from rlexp.collectors.share import Share, ShareWorker, share_seed
from rlexp.config import ConfigError
from rlexp.envs.normalization import (
    Moments,
    RunningObservationNorm,
    commit_normalization,
    init_normalization,
    observation_norms,
)
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import TrainState
from rlexp.runs.rundir import RunDir
from rlexp.training.state import state_of
from rlexp.workers import WorkerError


@pytest.fixture
def close() -> Iterator[list[Trainer]]:
    """Trainers that are closed whatever a test finds."""
    trainers: list[Trainer] = []
    yield trainers
    for one in trainers:
        one.close()


def test_what_processes_collect_is_what_plain_gymnasium_does(tmp_path: Path, close: list[Trainer]) -> None:
    subject = trainer("multi_sync", tmp_path / "run", "env/transforms=none", "seed=3")
    close.append(subject)
    batches = [subject.collector.rollout() for _ in range(2)]
    batch: Any = torch.cat(batches, 1)
    assert batch.batch_size == (4, 64)
    seeds = [int(s) for i in range(2) for s in np.random.SeedSequence(share_seed(3, i)).generate_state(2)]
    trajectories: set[int] = set()
    for row, seed in zip(batch, seeds, strict=True):
        env = gymnasium.make("InvertedDoublePendulum-v5", max_episode_steps=25)
        observation, _ = env.reset(seed=seed)
        ids, returned, count = row["collector", "traj_ids"].tolist(), 0.0, 0
        for t in range(64):
            assert np.array_equal(row["observation"][t].numpy(), observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(row["action"][t].numpy())
            returned, count = returned + float(reward), count + 1
            after = row["next"][t]
            assert np.array_equal(after["observation"].numpy(), observation.astype(np.float32))
            assert after["reward"].item() == np.float32(reward)
            assert after["episode_reward"].item() == pytest.approx(returned, rel=1e-5)
            assert after["step_count"].item() == count
            assert (after["terminated"].item(), after["truncated"].item()) == (terminated, truncated)
            if terminated or truncated:
                observation, _ = env.reset()
                returned, count = 0.0, 0
            assert t == 63 or (ids[t + 1] == ids[t]) != (terminated or truncated)
        assert trajectories.isdisjoint(ids)
        trajectories |= set(ids)


def test_its_batches_have_the_entries_of_the_other_collectors(tmp_path: Path, close: list[Trainer]) -> None:
    kinds = {"sync": (), "multi_sync": (), "torchrl": ("kernels=false",)}
    for kind, overrides in kinds.items():
        close.append(trainer("multi_sync" if kind == "torchrl" else kind, tmp_path / kind, *overrides))
    expected, *others = [next(iter(subject.collector)) for subject in close]
    for batch in others:
        assert set(batch.keys(True, True)) == set(expected.keys(True, True))
        assert (batch.batch_size, batch.names, batch.device) == (expected.batch_size, expected.names, expected.device)
        assert all(batch[key].dtype == expected[key].dtype for key in expected.keys(True, True))


def log_ratio(actor: Any, batch: Any) -> float:
    with torch.no_grad():
        now: Tensor = actor.get_dist(batch.select("observation")).log_prob(batch["action"])
    return float((now - batch["action_log_prob"]).abs().max())


def test_weights_and_statistics_reach_the_workers_before_each_batch(tmp_path: Path, close: list[Trainer]) -> None:
    """Before each update every importance ratio is 1; and what Ray collects is what processes here do."""
    rows: dict[str, list[dict[str, float]]] = {}
    for kind in ("multi_sync", "ray"):
        subject = trainer(kind, tmp_path / kind)
        close.append(subject)
        rows[kind] = []
        for _ in range(3):
            batch = subject.collect()
            assert log_ratio(subject.networks.actor, batch) < 1e-5
            norm = subject.env.transform[0]
            assert batch["observation"].abs().max() <= norm.clip
            rows[kind].append(subject.batch_metrics(batch) | subject.update(batch))
            assert log_ratio(subject.networks.actor, batch) > 1e-3
            commit_normalization(subject.env)
        assert subject.env.transform[0].moments.count == 30 + 3 * 128
    assert rows["ray"] == rows["multi_sync"]


def test_batches_of_multi_async_are_one_update_old(tmp_path: Path, close: list[Trainer]) -> None:
    subject = trainer("multi_async", tmp_path / "run")
    close.append(subject)
    before = copy.deepcopy(subject.networks.actor)
    for _ in range(3):
        batch = subject.collect()
        assert log_ratio(before, batch) < 1e-5
        before = copy.deepcopy(subject.networks.actor)
        subject.update(batch)
        commit_normalization(subject.env)
        assert log_ratio(subject.networks.actor, batch) > 1e-4
    assert subject.env.transform[0].moments.count == 30 + 3 * 128


class Here:
    """Workers that are in this process, one after the other."""

    def __init__(self, shares: list[Share]) -> None:
        self.workers = [ShareWorker(share) for share in shares]

    def ask(self, method: str, *arguments: object) -> None:
        self.found = [getattr(worker, method)(*arguments) for worker in self.workers]

    def answers(self) -> list[Any]:
        return self.found

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_statistics_are_those_of_all_that_the_workers_saw(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(["env.num_envs=4", "env.init_random_steps=40"])
    env = config.env.build(4)
    env.set_seed(0)
    init_normalization(env, 40)
    (norm,) = observation_norms(env)
    expected = copy.deepcopy(norm.moments)
    seen: list[Tensor] = []
    observe = RunningObservationNorm.observe

    def watched(norm: RunningObservationNorm, raw: Tensor) -> None:
        seen.append(raw.clone())
        observe(norm, raw)

    monkeypatch.setattr(RunningObservationNorm, "observe", watched)
    inner = SyncCollectorConfig(frames_per_batch=200 // num_workers, timeout=1.0)
    shares = [
        Share(Source(config.env, config.policy, 0, kernels=True), inner, i, num_workers) for i in range(num_workers)
    ]
    actor = config.policy.build(env, torch.device("cpu")).actor
    collector = MultiCollector(env, actor, Here(shares), torch.device("cpu"), ahead=False)
    for _ in range(3):
        seen.clear()
        collector.rollout()
        still = norm.loc.clone()
        torch.testing.assert_close(expected.mean.to(still), still)
        commit_normalization(env)
        one = Moments(expected.mean.shape)
        one.load_state_dict(expected.state_dict())
        one.update(torch.cat([raw.reshape(-1, *still.shape) for raw in seen]))
        expected = one
        assert norm.moments.count == expected.count
        torch.testing.assert_close(norm.moments.mean, expected.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.moments.var, expected.var, rtol=1e-12, atol=1e-12)
    assert norm.moments.count == 40 + 600
    collector.shutdown()


def train(subject: Trainer, iterations: int) -> list[dict[str, float]]:
    return [subject.iterate() for _ in range(iterations)]


GRU = ["policy=gru", "policy.sequence_length=8", "policy.hidden_size=8"]


@pytest.mark.parametrize(
    ("kind", "kernels", "policy"),
    [
        ("multi_sync", "auto", []),
        ("multi_async", "auto", []),
        ("multi_sync", "false", []),
        ("multi_sync", "false", GRU),
    ],
)
def test_the_same_seed_is_the_same_run_and_so_is_its_second_half(
    kind: str, kernels: str, policy: list[str], tmp_path: Path, close: list[Trainer]
) -> None:
    overrides = [f"kernels={kernels}", *policy]
    whole = trainer(kind, tmp_path / "whole", *overrides)
    close.append(whole)
    rows = train(whole, 2)
    middle = checkpoint.load(checkpoint.save(tmp_path / "half" / "checkpoints", state_of(whole), {}, keep_last=2))
    assert middle.state.inexact == []
    rows += train(whole, 2)
    end = state_of(whole)
    close.append(trainer(kind, tmp_path / "same", *overrides))
    assert train(close[-1], 4) == rows
    close.append(Trainer(whole.config, RunDir(tmp_path / "half"), middle))
    assert train(close[-1], 2) == rows[2:]
    if kernels == "auto":  # torchrl's carries entries that it does not read
        assert_same(state_of(close[-1]), end)


def assert_same(a: TrainState, b: TrainState) -> None:
    for field in ("simulators", "collector", "transforms", "learner", "actor"):
        assert _plain(getattr(a, field)) == _plain(getattr(b, field)), field


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return np.asarray(value).tobytes() if isinstance(value, Tensor | np.ndarray | np.generic) else repr(value)


def test_where_simulators_cannot_be_saved_the_checkpoint_reports_it(
    tmp_path: Path, close: list[Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("envpool")
    overrides = [*SMALL, "collector=multi_sync", "env.backend=envpool"]
    subject = Trainer(load_config(overrides), tmp_path / "run")
    close.append(subject)
    subject.iterate()
    saved = checkpoint.load(subject.save())
    subject.close()
    assert saved.state.inexact == ["BatchedEnvPool cannot give its simulators' state"]
    again = Trainer.resume(tmp_path / "run")
    close.append(again)
    assert "Every episode begins afresh" in caplog.text
    assert again.iterate()["train/step_count"] <= 25


FAULTY = """
import os, signal, time
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Faulty(PendulumEnv):
    def __init__(self, fault, mark, **kwargs):
        super().__init__(**kwargs)
        self.fault, self.mark, self.steps = fault, mark, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 70 and self.marked():
            {"death": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(600)}.get(
                self.fault, lambda: 1 / 0
            )()
        return super().step(action)

    def marked(self):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

gymnasium.register("Faulty-v0", Faulty, max_episode_steps=20)
"""


def faulty(fault: str, folder: Path, collector: str = "multi_sync") -> list[str]:
    (folder / "faulty_collected.py").write_text(FAULTY)
    env = ("env=gym", "env.id=faulty_collected:Faulty-v0", f"env.kwargs.fault={fault}", "env.name=faulty")
    return [f"collector={collector}", "collector.timeout=60", *env]


@pytest.mark.parametrize(
    ("collector", "fault", "reported"),
    [
        ("multi_sync", "exception", r"failed in process \d+:(.|\n)*ZeroDivisionError: division by zero"),
        ("multi_async", "exception", r"failed in process \d+:(.|\n)*ZeroDivisionError: division by zero"),
        ("multi_sync", "hang", r"process \d+, did not answer in 2 s \(collector.timeout\)"),
    ],
)
def test_a_worker_that_fails_is_named(
    collector: str, fault: str, reported: str, tmp_path: Path, close: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = faulty(fault, tmp_path, collector)
    monkeypatch.syspath_prepend(tmp_path)
    subject = Trainer(load_config([*SMALL, *overrides, f"env.kwargs.mark={tmp_path / 'mark'}"]), tmp_path / "run")
    close.append(subject)
    pids = subject.collector.workers.pids
    if fault == "hang":
        subject.collector.workers._timeout = 2  # once the processes have started, which may take longer
    with pytest.raises(
        WorkerError, match=rf"collector worker \d of 2 \(environments \d to \d of faulty\)(.|\n)*{reported}"
    ):
        train(subject, 3)
    subject.close()
    assert not any(alive(pid) for pid in pids)


def test_a_worker_that_dies_ends_the_run_which_can_be_gone_on_with(tmp_path: Path) -> None:
    overrides = faulty("death", tmp_path)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    arguments = [*SMALL, *overrides, f"env.kwargs.mark={tmp_path / 'mark'}", "hydra.run.dir=run"]
    process = launch(arguments, tmp_path, PYTHONPATH=path)
    process.join(60)
    assert process.exitcode == 1
    log = (tmp_path / "run" / "train.log").read_text()
    assert re.search(r"collector worker \d of 2 \(.*\), process \d+, died with exit code -9", log)
    assert checkpoint.load(tmp_path / "run").state.frames == 256
    complete(["resume=run", "trust=[faulty_collected,gymnasium]"], tmp_path, PYTHONPATH=path)


def test_close_ends_every_worker_and_ctrl_c_is_the_main_process_s_to_answer(tmp_path: Path) -> None:
    subject = trainer("multi_async", tmp_path / "run")
    pids = subject.collector.workers.pids
    assert len(pids) == 2
    subject.collector.rollout()
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    subject.collector.rollout()
    assert all(alive(pid) for pid in pids)
    subject.close()
    assert not any(alive(pid) for pid in pids)


def test_workers_do_not_outlive_a_killed_main_process_though_they_are_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    process = processes.Process(target=die_while_workers_work, args=(tmp_path, warm.start()))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 8  # the batch itself would take much longer
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_shared_out_is_refused_with_what_fits() -> None:
    with pytest.raises(ConfigError, match=r"collector\.num_workers=3(.|\n)*16, so that(.|\n)*: 1, 2, 4, 8, 16\."):
        load_config(["collector=multi_sync", "collector.num_workers=3"])
    with pytest.raises(ConfigError, match=r"env\.num_workers=2\n *must be 1 with this collector"):
        load_config(["collector=multi_async", "env.num_workers=2", "env.backend=gymnasium"])


def test_what_has_no_kernel_is_collected_by_torchrl_in_each_worker(tmp_path: Path, close: list[Trainer]) -> None:
    bonus = "env.transforms.bonus={_target_: torchrl.envs.BinarizeReward}"
    subject = trainer("multi_sync", tmp_path / "run", bonus)
    close.append(subject)
    batch = subject.collect()
    assert batch.shape == (4, 32)
    assert set(batch["next", "reward"].unique().tolist()) <= {0, 1}


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlexp\[ray\]'"):
        trainer("ray", tmp_path / "run")
