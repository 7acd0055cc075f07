"""Whatever happens to a checkpoint or while it is saved, what is loaded is what was saved, or nothing is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, complete, rows_of
from saves import KILLED, killed_save, state, three
from warm import processes

from rlexp import files
from rlexp.cli.train import train
from rlexp.runs import checkpoint, store
from rlexp.runs.errors import CheckpointError
from rlexp.runs.manifest import MANIFEST, SESSION, STATE, TENSORS, _digest

FILES = [MANIFEST, SESSION, STATE, TENSORS]


@pytest.mark.kill
def test_killed_at_every_step_of_a_save_nothing_is_lost(tmp_path: Path) -> None:
    for steps in range(100):
        process = processes.Process(target=killed_save, args=(tmp_path / str(steps), steps))
        process.start()
        process.join()
        assert process.exitcode in (0, KILLED)
        if process.exitcode == 0:
            break
    assert steps >= 20  # four files opened and synced, folders, renames, two pointers, pruning
    found = []
    for n in range(steps + 1):
        run_dir = tmp_path / str(n)
        newest = checkpoint.load(run_dir)
        found.append(newest.state.frames)
        assert newest.state.actor["w"].tolist() == [found[-1]] * 3
        for path in store.saved(run_dir / "checkpoints"):
            checkpoint.load(path)  # each that is there is whole
        best = (run_dir / "checkpoints" / "best").read_text()
        assert checkpoint.load(run_dir / "checkpoints" / best).state.frames in (1, 4)
        again = checkpoint.save(run_dir / "checkpoints", state(5), {}, keep_last=2)
        assert checkpoint.load(run_dir).path == again
        assert not list((run_dir / "checkpoints").glob(".[0-9]*.tmp"))
    assert found == sorted(found)
    assert set(found) == {3, 4}


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_byte_goes_unseen(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), {"seed": 1}, keep_last=2)
    content = (path / name).read_bytes()
    for position in range(0, len(content), max(1, len(content) // 200)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        (path / name).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.load(path)
    (path / name).write_bytes(content)
    assert checkpoint.load(path).state.frames == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted"])
def test_damaged_newest_is_named_and_skipped(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = three(tmp_path) / f"{3:012d}"
    file = newest / name
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-7])
        case "emptied":
            file.write_bytes(b"")
        case "deleted":
            file.unlink()
    assert checkpoint.load(tmp_path).state.frames == 2
    assert f"Skipped: {newest}" in caplog.text
    with pytest.raises(CheckpointError, match=str(newest)):
        checkpoint.load(newest)


def test_with_none_whole_nothing_starts(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    for path in store.saved(run_dir / "checkpoints"):
        (path / TENSORS).write_bytes(b"")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CheckpointError, match="has no checkpoint that is whole") as refused:
        train([f"resume={run_dir}", "total_frames=2048"])
    assert all(path.name in str(refused.value) for path in store.saved(run_dir / "checkpoints"))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"} == before
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match="nor a run with checkpoints"):
        train([*TINY, "hydra.run.dir=run", "resume=auto"])
    assert all(path.read_bytes() == content for path, content in before.items() if "checkpoints" not in path.parts)
    assert not (run_dir / "checkpoints").exists()


def test_a_run_goes_on_from_the_newest_whole_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    newest = store.saved(run_dir / "checkpoints")[-1]
    (newest / STATE).write_bytes(b"")
    complete([f"resume={run_dir}", "logger=none"], tmp_path)
    assert rows_of(run_dir) == rows_of(tiny_run)
    whole = checkpoint.load(newest)
    for name in (STATE, TENSORS):
        assert (whole.path / name).read_bytes() == (checkpoint.load(tiny_run).path / name).read_bytes()
    assert (newest.parent / f"superseded-{newest.name}").is_dir()


def forge(path: Path, **changes: Any) -> None:
    """Rewrite a manifest with its own hash right."""
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    del manifest["sha256"]
    (path / MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}))


def entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {Path.cwd() / 'executed'}",)


@pytest.mark.parametrize("name", [STATE, SESSION, TENSORS])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save(tmp_path, state(1), {}, keep_last=2)
    content = pickle.dumps(Malicious())
    (path / name).write_bytes(content)
    files = json.loads((path / MANIFEST).read_text())["files"]
    forge(path, files=files | {name: entry(content)})
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)
    assert (tmp_path / "executed").exists()  # it would have


def test_a_manifest_cannot_lead_outside_its_folder(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), {}, keep_last=2)
    content = (path / TENSORS).read_bytes()
    (tmp_path / "outside").write_bytes(content)
    files = json.loads((path / MANIFEST).read_text())["files"]
    del files[TENSORS]
    forge(path, files=files | {"../outside": entry(content)})
    with pytest.raises(CheckpointError, match=r"names other files: .*\.\./outside"):
        checkpoint.load(path)


@pytest.mark.parametrize("full_at", range(1, 5))
def test_full_disk_leaves_what_was_there(full_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = three(tmp_path)
    written = []
    real = files.write_bytes

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == full_at:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", write)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(folder, state(4), {}, keep_last=2)
    assert checkpoint.load(tmp_path).state.frames == 3
    assert not list(folder.glob(".[0-9]*.tmp"))
    checkpoint.save(folder, state(4), {}, keep_last=2)
    assert checkpoint.load(tmp_path).state.frames == 4


def test_none_is_ever_overwritten(tmp_path: Path) -> None:
    three(tmp_path)
    with pytest.raises(CheckpointError, match="never overwritten"):
        checkpoint.save(tmp_path / "checkpoints", state(3), {}, keep_last=2)


def test_a_later_format_is_refused_by_what_wrote_it(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), {}, keep_last=2)
    forge(path, format_version=99, versions={"rlexp": "9.9"})
    with pytest.raises(CheckpointError, match=r"format 99, written by rlexp 9\.9"):
        checkpoint.load(path)
