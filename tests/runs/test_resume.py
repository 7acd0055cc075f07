"""A run that is killed and resumed is the run that was never killed, bit for bit; each thing saved is needed for it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import choosing
import numpy as np
import pytest
import torch
from commands import TINY, complete, launch, rows_of
from readers import checkpoint_hashes

from rlexp import Trainer, load_config
from rlexp.envs.errors import SimulatorError
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import TrainState
from rlexp.runs.rundir import RunDir
from rlexp.training.state import state_of

# Episodes are cut at 25 steps, so that truncations and resets fall into every batch; batches end in mid-episode.
SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=2", "env.max_episode_steps=25", "env.init_random_steps=30"),
    *("num_epochs=2", "minibatch_size=32", "policy.num_cells=[8]", "evaluation.episodes=2", "evaluation.interval=256"),
    *("logger=none", "threads=1", "device=cpu"),
]
# More than is trained here, so that no evaluation takes the place of the one in the middle.
SPAN = ["total_frames=960", "evaluation.interval=960"]
TASKS = ["InvertedDoublePendulum-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5", "Pendulum-v1"]


def kill_within(process: Any, metrics: Path, new_rows: int, seconds: float) -> bool:
    """``kill -9`` some seconds after so many more rows; whether the process was still at work."""
    rows = count_lines(metrics) + new_rows
    while process.exitcode is None and count_lines(metrics) < rows:
        process.join(0.002)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), (metrics.parents[1] / "output.txt").read_text()
    return bool(process.exitcode == -9)


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.kill
@pytest.mark.parametrize(
    ("task", "backend", "workers"),
    [(TASKS[0], "auto", 1), ("Hopper-v5", "gymnasium", 2), ("Ant-v5", "auto", 2), ("Humanoid-v5", "auto", 1)],
)
def test_killed_at_random_instants_it_is_the_run_that_was_never_killed(
    task: str, backend: str, workers: int, tmp_path: Path
) -> None:
    arguments = [
        "env=gym",
        f"env.id={task}",
        f"env.backend={backend}",
        f"env.num_workers={workers}",
        *SMALL,
        "total_frames=1536",
        "checkpoint.interval=128",
        "resume=auto",
    ]
    seed = random.randrange(10**6)
    print(f"seed of the instants: {seed}")
    instants = random.Random(seed)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for _ in range(4):
        process = launch([*arguments, "hydra.run.dir=killed"], tmp_path)
        assert kill_within(process, metrics, instants.randrange(4), instants.uniform(0, 0.05))
    complete([*arguments, "hydra.run.dir=killed"], tmp_path)
    complete([*arguments, "hydra.run.dir=whole"], tmp_path)
    whole, killed = rows_of(tmp_path / "whole"), rows_of(tmp_path / "killed")
    assert [row["frames"] for row in whole] == list(range(64, 1537, 64))
    assert killed == whole
    assert checkpoint_hashes(tmp_path / "killed") == checkpoint_hashes(tmp_path / "whole")


MASKS = ["env.kwargs={action: multi, mask: entry}", "policy=gru", "policy.sequence_length=8", "policy.hidden_size=8"]


@pytest.mark.kill
def test_killed_with_masks_of_actions_it_is_the_run_that_was_never_killed(tmp_path: Path) -> None:
    own = {"PYTHONPATH": str(Path(choosing.__file__).parent)}
    setting = ["env=gym", "env.id=choosing:Choosing-v0", *SMALL, *MASKS, "total_frames=960", "resume=auto"]
    arguments = [*setting, "env.num_workers=2", "checkpoint.interval=128"]
    for rows in (3, 2):
        process = launch([*arguments, "hydra.run.dir=killed"], tmp_path, **own)
        assert kill_within(process, tmp_path / "killed" / "metrics.jsonl", rows, 0.02)
    for folder in ("killed", "whole"):
        complete([*arguments, f"hydra.run.dir={folder}"], tmp_path, **own)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert checkpoint_hashes(tmp_path / "killed") == checkpoint_hashes(tmp_path / "whole")


# Every part of the update that has a state of its own, and simulators in Python.
OPTIONS = {
    "penalty": [
        *("loss=kl_ppo", "loss.dtarg=1e-4", "optim.schedule=kl_adaptive", "optim.critic_lr=1e-3", "target_kl=1e-3"),
        *("loss.entropy_coeff=0.01", "loss.entropy_schedule=linear", "loss.estimator=vtrace", "loss.clip_value=0.2"),
    ],
    "gymnasium": ["env.id=Ant-v5", "env.backend=gymnasium"],
    "reppo": ["loss=reppo", "optim.critic_lr=1e-3", "optim.schedule=linear"],
    "clip": ["loss.clip_schedule=cosine", "recompute_advantage=false", "optim=rmsprop", "optim.schedule=cosine"],
}


def trainer(
    task: str, run_dir: Path, start: checkpoint.Checkpoint | None = None, overrides: Sequence[str] = ()
) -> Trainer:
    experiment = load_config(["env=gym", f"env.id={task}", *SMALL, *SPAN, *overrides])
    return Trainer(experiment, RunDir(run_dir), start)


def train(subject: Trainer, iterations: int) -> list[dict[str, float]]:
    return [subject.iterate() for _ in range(iterations)]


class Halves:
    """One run whole, and its state in the middle."""

    def __init__(self, task: str, folder: Path, *overrides: str) -> None:
        self.task, self.folder, self.overrides = task, folder, overrides
        whole = trainer(task, folder / "whole", None, overrides)
        train(whole, 2)
        whole.evaluator.evaluate(whole.env, whole.frames)
        saved = checkpoint.save(folder / "middle" / "checkpoints", state_of(whole), {}, keep_last=2)
        self.middle = checkpoint.load(saved)
        self.rows = train(whole, 4)
        self.end = dataclasses.replace(state_of(whole), session={})
        self.fresh = state_of(trainer(task, folder / "fresh", None, overrides))

    def resumed_equals(self, change: Callable[[TrainState], object]) -> bool:
        middle = checkpoint.load(self.middle.path)  # anew: a trainer trains the very tensors that it is given
        change(middle.state)
        again = trainer(self.task, self.folder / "middle", middle, self.overrides)
        try:
            rows = train(again, 4)
            end = dataclasses.replace(state_of(again), session={})
        finally:
            again.close()
        return rows == self.rows and same(dataclasses.asdict(end), dataclasses.asdict(self.end))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module", params=TASKS)
def halves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves(request.param, tmp_path_factory.mktemp("halves"))


def test_the_second_half_is_the_same_with_all_of_the_state(halves: Halves) -> None:
    assert halves.middle.state.inexact == []
    assert halves.resumed_equals(lambda state: None)


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_the_second_half_is_the_same_with_masks_of_actions(kernels: str, tmp_path: Path) -> None:
    halves = Halves("choosing:Choosing-v0", tmp_path, *MASKS, f"kernels={kernels}")
    assert halves.middle.state.inexact == []
    assert halves.resumed_equals(lambda state: None)
    if kernels == "auto":  # torchrl's collector carries the masks itself
        with pytest.raises(SimulatorError):
            check_needed(("simulators", "simulators", "arrays", -2), halves)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_second_half_is_the_same_with_every_option_of_the_update(name: str, tmp_path: Path) -> None:
    halves = Halves("Pendulum-v1", tmp_path, *OPTIONS[name])
    assert halves.resumed_equals(lambda state: None)
    if name == "reppo":
        for part in ("optimizers", "multipliers", "schedulers", "reward_norm"):
            assert not halves.resumed_equals(partial(_replaced, part, halves.fresh.learner[part]))
    if name == "penalty":
        middle, end = halves.middle.state.learner, halves.end.learner
        for of in (middle, end):
            assert of["optimizer"]["param_groups"][0]["lr"] != 7e-4
            assert of["loss"]["beta"] != 1.0
        assert middle["optimizer"]["param_groups"][0]["lr"] != end["optimizer"]["param_groups"][0]["lr"]
        assert middle["loss"]["beta"] != end["loss"]["beta"]


def _replaced(part: str, value: object, state: TrainState) -> None:
    state.learner[part] = value


# These say how well it can be resumed, and what differs between runs that are otherwise equal.
DESCRIBED = ("unverified", "inexact", "session")
FIELDS = [field.name for field in dataclasses.fields(TrainState) if field.name not in DESCRIBED]


@pytest.mark.parametrize("field", FIELDS)
def test_it_differs_without_any_one_field_of_the_state(field: str, ant: Halves) -> None:
    fresh = getattr(ant.fresh, field)
    assert not ant.resumed_equals(lambda state: setattr(state, field, fresh))


@pytest.fixture(scope="module")
def ant(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    # A loss and a callback that have a state.
    odometer = "callbacks.odometer._target_=odometer.Odometer"
    return Halves("Ant-v5", tmp_path_factory.mktemp("ant"), "loss=kl_ppo", odometer)


@pytest.fixture(scope="module")
def gymnasium_ant(tmp_path_factory: pytest.TempPathFactory) -> Halves:
    return Halves("Ant-v5", tmp_path_factory.mktemp("ant"), "env.backend=gymnasium")


# Parts of fields that are easily forgotten.
PARTS: dict[str, tuple[Any, ...]] = {
    "newest evaluation": ("evaluator", "final"),
    "best evaluation": ("evaluator", "best"),
    "when the best evaluation was": ("evaluator", "best_frames"),
    "discounted return": ("learner", "reward_norm", "discounted"),
    "variance of the return": ("learner", "reward_norm", "moments.var"),
    "observation moments": ("transforms", "transforms.0.moments.mean"),
    "Adam's moments": ("learner", "optimizer", "state"),
    "weight of the KL penalty": ("learner", "loss", "beta"),
    "learning rate's schedule": ("learner", "scheduler"),
    "reward statistics": ("learner", "reward_norm"),
    "time limit": ("simulators", "simulators", "elapsed"),
    "simulators' generators": ("simulators", "simulators", "rngs"),
    "physics": ("simulators", "simulators", "rows"),
    "torch's generator": ("rng", "torch"),
}


@pytest.mark.parametrize("part", PARTS)
def test_it_differs_without_any_one_part_of_a_field(part: str, ant: Halves) -> None:
    check_needed(PARTS[part], ant)


# Of a simulator of Gymnasium's; a layer is one of its wrappers, TimeLimit first.
LAYER_PARTS: dict[str, tuple[Any, ...]] = {
    "time limit": (0, "values", "_elapsed_steps"),
    "generator": (-1, "generators", "_np_random", "state"),
    "physics": (-1, "physics", "data", "integration"),
    "derived arrays": (-1, "physics", "data", "derived"),
}


@pytest.mark.parametrize("part", LAYER_PARTS)
def test_it_differs_without_any_one_part_of_a_simulator(part: str, gymnasium_ant: Halves) -> None:
    check_needed(("simulators", "simulators", "simulators", 0, "layers", *LAYER_PARTS[part]), gymnasium_ant)


def check_needed(part: tuple[Any, ...], halves: Halves) -> None:
    """Put a fresh trainer's part in the place of the saved one."""
    path: list[Any]
    field, *path, last = part

    def drop(state: TrainState) -> None:
        ours, fresh = getattr(state, str(field)), getattr(halves.fresh, str(field))
        for key in path:
            ours, fresh = ours[key], fresh[key]
        assert not same(ours[last], fresh[last])
        ours[last] = fresh[last]

    assert not halves.resumed_equals(drop)


@pytest.mark.parametrize("name", ["observation", "step_count", "episode_reward", "traj"])
def test_it_differs_without_any_one_part_of_what_the_collector_carries(name: str, ant: Halves) -> None:
    def drop(ours: dict[str, Any], fresh: dict[str, Any]) -> int:
        dropped = 0
        for key in ours.keys() & fresh.keys():
            if name in key:
                dropped += not same(ours[key], fresh[key])
                ours[key] = fresh[key]
            elif isinstance(ours[key], dict):
                dropped += drop(ours[key], fresh[key])
        return dropped

    def drop_and_check(state: TrainState) -> None:
        assert drop(state.collector, ant.fresh.collector) > 0

    assert not ant.resumed_equals(drop_and_check)


def test_clock_goes_on(tmp_path: Path) -> None:
    complete([*TINY, "logger=none", "hydra.run.dir=run", "total_frames=512"], tmp_path)
    before = rows_of(tmp_path / "run", timings=True)[-1]
    complete(["resume=run", "total_frames=768"], tmp_path)
    after = rows_of(tmp_path / "run", timings=True)[-1]
    assert all(after[key] > before[key] for key in ("time/collect", "time/update", "time/eval"))
    assert after["time/fps"] == pytest.approx(768 / (after["time/collect"] + after["time/update"]))
