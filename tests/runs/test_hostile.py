"""Checkpoints from anyone: whatever they hold, they are refused by name, quickly and in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml
from commands import clean_environment

from rlexp import files, load_config
from rlexp.agent import Agent
from rlexp.agent.video import EpisodeRecorder, VideoError
from rlexp.cli.search import search
from rlexp.cli.train import train
from rlexp.config import ConfigError, option_text
from rlexp.config.trust import most_weights
from rlexp.plots import plot_training
from rlexp.runs import checkpoint, manifest
from rlexp.runs.errors import CheckpointError
from rlexp.runs.links import refuse_links
from rlexp.runs.resume import resume_run
from rlexp.runs.rundir import RunDir

NEWEST = "000000001024"


def digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, content: dict[str, bytes] | None = None, **config: Any) -> None:
    """Put files and settings into a checkpoint, with valid digests, as a stranger can."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for name, data in (content or {}).items():
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for path, value in config.items():
        node = manifest["config"]
        *above, last = path.split("__")
        for part in above:
            node = node[part]
        node[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest(manifest)}))


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(12)


def with_field(folder: Path, name: str, value: Any) -> bytes:
    state = json.loads((folder / "state.json").read_text())
    for pair in state["dict"]:
        if pair[0] == name:
            pair[1] = value
    return json.dumps(state).encode()


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


CHANGES: dict[str, Callable[[Path], object]] = {
    "state nested deeply": lambda f: seal(f, {"state.json": b"[" * 200_000}),
    "state is a giant number": lambda f: seal(f, {"state.json": b"9" * 100_000}),
    "state is not UTF-8": lambda f: seal(f, {"state.json": b"\xff\xfe{}"}),
    "state is null": lambda f: seal(f, {"state.json": b"null"}),
    "state of an unknown kind": lambda f: seal(f, {"state.json": b'{"dict": [["frames", {"object": 1}]]}'}),
    "frames is text": lambda f: seal(f, {"state.json": with_field(f, "frames", "x")}),
    "frames is negative": lambda f: seal(f, {"state.json": with_field(f, "frames", -1)}),
    "frames is infinite": lambda f: seal(f, {"state.json": with_field(f, "frames", 1e999)}),
    "actor is a list": lambda f: seal(f, {"state.json": with_field(f, "actor", {"list": []})}),
    "actor holds numbers": lambda f: seal(f, {"state.json": with_field(f, "actor", {"dict": [["a", 1]]})}),
    "actor is named by numbers": lambda f: seal(f, {"state.json": with_field(f, "actor", {"dict": [[1, 1]]})}),
    "a tensor that is not there": lambda f: seal(f, {"state.json": with_field(f, "actor", {"tensor": "../../x"})}),
    "transforms is null": lambda f: seal(f, {"state.json": with_field(f, "transforms", None)}),
    "session is null": lambda f: seal(f, {"session.json": b"null"}),
    "a run's id leads elsewhere": lambda f: seal(f, {"session.json": b'{"run_id": "../../x", "seconds": {}}'}),
    "tensors say they are huge": lambda f: seal(f, {"tensors.safetensors": (2**62).to_bytes(8, "little") + b"{}"}),
    "tensors overlap": lambda f: seal(f, {"tensors.safetensors": header(
        a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]})}),
    "a shape overflows": lambda f: seal(f, {"tensors.safetensors": header(
        a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 12]})}),
    "tensors without end": replaced("tensors.safetensors", lambda p: p.symlink_to("/dev/zero")),
    "tensors is a sparse file": replaced("tensors.safetensors", lambda p: os.truncate(_touched(p), 2**40)),
    "manifest is a sparse file": replaced("manifest.json", lambda p: os.truncate(_touched(p), 2**40)),
    "manifest nested deeply": lambda f: (f / "manifest.json").write_bytes(b"[" * 200_000),
    "manifest is a list": lambda f: (f / "manifest.json").write_bytes(b"[1]"),
    "manifest is not UTF-8": lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest is a pipe": replaced("manifest.json", os.mkfifo),
    "state is a pipe": replaced("state.json", os.mkfifo),
    "state is a folder": replaced("state.json", os.mkdir),
    "config nested deeply": lambda f: seal(f, env__kwargs=nested(200)),
}  # fmt: skip


def _touched(path: Path) -> Path:
    path.touch()
    return path


@contextmanager
def less_memory_than(kib: int) -> Iterator[None]:
    """Fail where the process takes so much more memory inside, if only for a moment."""
    if not Path("/proc/self/clear_refs").exists():  # Linux alone lets the peak begin anew
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    assert _peak() - before < kib


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_a_peak_of_memory_is_seen() -> None:
    with pytest.raises(AssertionError), less_memory_than(50_000):
        bytearray(400 * 2**20)  # so much that what the kernel reclaims meanwhile does not hide it


@pytest.fixture
def folder(run_dir: Path) -> Path:
    shutil.rmtree(run_dir / "checkpoints" / "000000000512")
    shutil.rmtree(run_dir / "checkpoints" / "000000000000", ignore_errors=True)
    return run_dir / "checkpoints" / NEWEST


def test_what_a_stranger_seals_is_taken_for_whole(folder: Path) -> None:
    seal(folder, {"state.json": with_field(folder, "frames", 7)}, evaluation__episodes=2)
    loaded = checkpoint.load(folder)
    assert (loaded.state.frames, loaded.config["evaluation"]["episodes"]) == (7, 2)


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_refused_by_name(change: str, folder: Path) -> None:
    CHANGES[change](folder)
    begun = time.monotonic()
    with less_memory_than(300_000), pytest.raises(CheckpointError, match=NEWEST) as caught:
        checkpoint.load(folder.parents[1])
    assert len(str(caught.value)) < 1000
    assert "SHA-256 differs" not in str(caught.value)  # sealed as it is, it is refused for what it holds
    assert time.monotonic() - begun < 10


def test_a_command_refuses_it_before_torch_is_imported(folder: Path, tmp_path: Path) -> None:
    seal(folder, {"session.json": b"null"})
    code = f"""
import sys
from rlexp.cli.evaluate import evaluate
from rlexp.cli.export import export
from rlexp.cli.train import train
from rlexp.runs.errors import CheckpointError
run = {str(folder.parents[1])!r}
for command, argument in ((evaluate, "checkpoint"), (export, "checkpoint"), (train, "resume")):
    try:
        command([f"{{argument}}={{run}}"])
    except CheckpointError as error:
        assert "session is no mapping" in str(error)
    else:
        raise AssertionError(command)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", [b"../../../../etc", b"/etc", b"\xff\xfe", b"", b"best", b"000\n001", b"9" * 5000])
def test_a_pointer_that_leads_elsewhere_is_refused(text: bytes, folder: Path) -> None:
    (folder.parent / "best").write_bytes(text)
    with pytest.raises(CheckpointError, match="best"):
        checkpoint.load(folder.parent / "best")


def test_a_pointer_that_is_a_pipe_is_refused(folder: Path) -> None:
    (folder.parent / "best").unlink(missing_ok=True)
    os.mkfifo(folder.parent / "best")
    with pytest.raises(CheckpointError, match=r"best.*no regular file"):
        checkpoint.load(folder.parent / "best")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("evaluation__episodes", 10**9),
        ("env__num_envs", 10**9),
        ("policy__num_cells", [10**9]),
        ("policy__num_cells", [60_000, 60_000]),
        ("policy__num_cells", [8_000] * 1_000),
        ("policy__actor_network", {"_target_": "torchrl.modules.MLP", "num_cells": 8_000, "depth": 1_000}),
        ("env__pixels", {"size": 10**6, "stack": 4}),
        ("env__transforms", {"x": {"_target_": "torchrl.envs.CatFrames", "N": 10**9, "dim": -1}}),
        ("env___target_", {"a": 1}),
        ("env___target_", "rlexp"),
        ("env___target_", ""),
        ("env", None),
        ("policy", [1]),
        ("env__transforms", {"x": {"_target_": "torchrl.envs.transforms.nothing.X"}}),
    ],
)
def test_a_config_that_asks_for_too_much_or_nonsense_is_refused(setting: str, value: Any, folder: Path) -> None:
    seal(folder, **{setting: value})
    begun = time.monotonic()
    with less_memory_than(1_000_000), pytest.raises((ConfigError, CheckpointError)) as caught:
        Agent(folder)
    assert "SHA-256 differs" not in str(caught.value)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("policy", "weights"),
    [
        ({"num_cells": [3, 5]}, 2 * 25),
        ({"num_cells": [64], "channels": [16, 32], "kernel_sizes": [8, 4]}, 2 * (64**2 + 32**2 * 8**2)),
        ({"num_cells": [7], "hidden_size": 11, "sequence_length": 10**6}, 8 * 11**2),
        ({"actor_network": {"_target_": "torchrl.modules.MLP", "num_cells": 9, "depth": 4}}, 4 * 81),
        ({"num_cells": [2], "actor_network": {"_target_": "mine.Net", "vocabulary": 10**9}}, 4),
        (None, 0),
        ([1], 0),
    ],
)
def test_weights_are_bounded_before_they_are_built(policy: Any, weights: int) -> None:
    assert most_weights(policy) == weights


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock", "train.log", "summary.json", ".config.yaml.tmp"])
def test_a_run_is_not_resumed_into_files_that_lie_elsewhere(name: str, folder: Path, tmp_path: Path) -> None:
    run = folder.parents[1]
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    with pytest.raises(CheckpointError, match=name):
        resume_run(run, ["total_frames=2048"])
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "plots", "videos", "wandb", "tensorboard"])
def test_a_run_is_not_resumed_into_folders_that_lie_elsewhere(name: str, folder: Path, tmp_path: Path) -> None:
    run = folder.parents[1]
    elsewhere = tmp_path / "elsewhere"
    (run / name).rename(elsewhere) if (run / name).exists() else elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=f"{name} is a link"):
        resume_run(run, ["total_frames=2048"])


def of_a_sweep(folder: Path, victim: Path) -> None:
    sources = {"config_dir": None, "config_path": None, "config_name": None}
    (folder / "sweep.json").write_text(json.dumps({"jobs": [["env=pendulum"]], "hydra": [], "sources": sources}))
    (folder / "0").mkdir()
    (folder / "0" / "train.log").symlink_to(victim)


def of_a_sweep_elsewhere(folder: Path, victim: Path) -> None:
    of_a_sweep(folder, victim)
    (folder / "0").rename(victim.parent / "project")
    (victim.parent / "project" / "train.log").unlink()
    (folder / "0").symlink_to(victim.parent / "project")


@pytest.mark.parametrize("prepare", [of_a_sweep, of_a_sweep_elsewhere])
def test_no_job_of_a_sweep_that_has_not_started_is_written_elsewhere(
    prepare: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "sweep").mkdir()
    prepare(tmp_path / "sweep", victim)
    with pytest.raises(CheckpointError, match=r"sweep/0.* is (a link|no regular file)"):
        train(["--multirun", "sweep.resume=sweep"])
    assert victim.read_text() == "precious"
    assert not list(tmp_path.glob("project/*"))


def test_no_trial_of_a_search_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found" / "trials" / "000" / "task").mkdir(parents=True)
    (tmp_path / "found" / "search.yaml").write_text("{}")
    (tmp_path / "found" / "trials" / "000" / "task" / "seed_100").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="seed_100 is a link"):
        search(["resume=found"])


def test_nothing_of_a_search_is_written_through_links(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from rlexp.search.config import read_search
    from rlexp.search.confirmation import confirm
    from rlexp.search.folder import SearchDir, SearchPlan
    from rlexp.search.run import search as run_search
    from rlexp.search.study import open_study

    victim = tmp_path / "victim"
    victim.write_text("precious")
    values = yaml.safe_load(option_text("search/ppo")) | {"trials": 1, "tasks": {}, "confirm": 0}
    settings = read_search(values, lambda task: load_config(["env=pendulum"]).to_dict())
    plan = SearchPlan(["env=pendulum"], settings, None)
    folder = SearchDir(tmp_path / "found")
    for path in (folder.plots / "history.png", folder.confirmation(0, "", settings.fresh_seeds[0]) / "train.log"):
        path.parent.mkdir(parents=True)
        path.symlink_to(victim)
    study = open_study(folder, settings)
    study.tell(study.ask(), 1.0)
    with pytest.raises(OSError, match=r"history\.png is a link"):
        run_search(folder, plan)
    with pytest.raises(CheckpointError, match=r"train\.log is no regular file"):
        confirm(folder, plan, study.trials, lambda: None)
    assert victim.read_text() == "precious"


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sweep.json", None),  # a pipe
        ("0/config.yaml", ALIASES),
        ("0/config.yaml", "[1, 2]"),
        ("0/config.yaml", "a: ["),
        ("0/config.yaml", 'env: "${oops"'),
        ("search.yaml", None),
        ("search.yaml", f"{ALIASES}search: {{}}\n"),
    ],
)
def test_a_damaged_plan_is_named_and_costs_nothing(
    name: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    sources = {"config_dir": None, "config_path": None, "config_name": None}
    plan = {"jobs": [["env=pendulum", "logger=none"]], "hydra": [], "sources": sources}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name) if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"is damaged|has changed"):
        search(["resume=."]) if name == "search.yaml" else train(["--multirun", "sweep.resume=."])


def test_a_new_run_is_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match="no regular file"):
        train(["env=pendulum", "logger=none", f"hydra.run.dir={tmp_path}"])


def test_what_another_process_renames_meanwhile_is_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is asked about before its lock is taken, so another process may be writing it."""
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([path / ".metadata.json.tmp", path / "train.log"]))
    (tmp_path / "train.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"train\.log is no regular file"):
        refuse_links(RunDir(tmp_path))


def test_a_run_does_not_say_where_wandb_logs_to(folder: Path) -> None:
    (folder.parents[1] / "wandb").mkdir(exist_ok=True)
    (folder.parents[1] / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    with pytest.raises(CheckpointError, match="which server"):
        resume_run(folder.parents[1], ["total_frames=2048"])


def test_plots_and_videos_are_written_to_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "overview.png").symlink_to(victim)
    rows = [{"frames": 1, "eval/return": 1.0, "train/reward": 1.0, "train/step_count": 1, "train/lr": 1e-3}]
    with pytest.raises(OSError, match="is a link"):
        plot_training(rows, tmp_path / "plots")
    assert victim.read_text() == "precious"
    (tmp_path / "videos").symlink_to(tmp_path / "plots")
    recorder = EpisodeRecorder(gymnasium.make("CartPole-v1", render_mode="rgb_array"), tmp_path / "videos" / "one.mp4")
    with pytest.raises(VideoError, match="is a link"):
        recorder.reset(seed=0)


def test_one_that_is_pruned_while_it_is_read_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newer = folder.with_name("000000002048")
    read = files.read_regular

    def pruned_once(path: Path, limit: int) -> bytes:
        if path.name == "tensors.safetensors" and folder.exists():
            folder.rename(newer)  # as a training that goes on would leave it
        return read(path, limit)

    monkeypatch.setattr(manifest, "read_regular", pruned_once)
    assert checkpoint.load(folder.parents[1]).path == newer
    assert "damaged" not in caplog.text


def test_a_best_that_is_replaced_while_it_is_read_is_the_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = folder.with_name("000000002048")
    (folder.parent / "best").write_text(folder.name)
    read = files.read_regular

    def pruned_once(path: Path, limit: int) -> bytes:
        if path.name == "manifest.json" and folder.exists():
            folder.rename(newer)
            (folder.parent / "best").write_text(newer.name)
        return read(path, limit)

    monkeypatch.setattr(manifest, "read_regular", pruned_once)
    assert checkpoint.load(folder.parent / "best").path == newer


def test_a_best_that_is_not_there_yet_is_no_damage(folder: Path) -> None:
    (folder.parent / "best").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no best checkpoint yet") as caught:
        checkpoint.load(folder.parent / "best")
    assert "damaged" not in str(caught.value)
