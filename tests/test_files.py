"""Locks and files on shared file systems, with the answers that NFS and Lustre give."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from rlexp import files
from rlexp.cli import train
from rlexp.files import alone, locks_are_local, read_shared
from rlexp.runs.rundir import RunDir
from rlexp.sweeps import run_jobs
from rlexp.sweeps.folder import DamagedSummaryError, read_summary

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_refused_with_the_remedy(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, number)
    with pytest.raises(OSError, match=r"without file locks \(.+-o flock.+hydra\.run\.dir"):
        RunDir(tmp_path / "outputs" / "run").lock()
    with pytest.raises(OSError, match="without file locks"), alone(tmp_path / ".index.lock"):
        pytest.fail("it was entered")
    assert not (tmp_path / "outputs").exists(), "nothing is left behind"


def test_neither_a_training_nor_a_sweep_starts_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.ENOLCK)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="without file locks"):
        train.train(["hydra.run.dir=run", "logger=none"])
    with pytest.raises(OSError, match="without file locks"):
        run_jobs("sweep", [["logger=none"]])
    assert not [*tmp_path.iterdir()]


def test_another_fault_of_a_lock_is_not_taken_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        RunDir(tmp_path / "run").lock()


@pytest.mark.parametrize(
    ("kind", "options", "local"),
    [
        ("nfs4", "rw,hard,local_lock=none", False),
        ("nfs", "rw,nolock,local_lock=all", True),
        ("nfs", "rw,local_lock=flock", True),
        ("lustre", "rw,flock", False),
        ("lustre", "rw,localflock", True),
    ],
)
def test_locks_that_hold_on_one_machine_alone_are_announced(
    kind: str,
    options: str,
    local: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = tmp_path / "shared folder"
    mounts = tmp_path / "mounts"
    point = str(shared).replace(" ", r"\040")
    other = "localflock" if not local else "rw"
    mounts.write_text(f"none / ext4 {other} 0 0\nserver:/x {point} {kind} {options} 0 0\n")
    monkeypatch.setattr(files, "_MOUNTS", mounts)
    run = RunDir(shared / "runs" / "1")
    run.lock()
    run.unlock()
    assert ("no other machine starts or resumes this run" in caplog.text) is local
    assert locks_are_local(tmp_path) is not local


def test_a_file_that_another_machine_replaces_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "summary.json").write_text("new")
    answers = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]
    read = files.read_regular

    def read_regular(path: Path, limit: int) -> bytes:
        if answers:
            raise answers.pop()
        return read(path, limit)

    monkeypatch.setattr(files, "read_regular", read_regular)
    assert read_shared(tmp_path / "summary.json") == "new"
    with pytest.raises(FileNotFoundError):
        read_shared(tmp_path / "none")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Whoever made the folder may have laid a link in it, to any file of the user's."""
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    (tmp_path / "run").mkdir()
    for name in (".lock", ".index.lock", ".config.yaml.tmp"):
        (tmp_path / "run" / name).symlink_to(theirs)
    run = RunDir(tmp_path / "run")
    with pytest.raises(OSError, match="is a link"):
        run.lock()
    with pytest.raises(OSError, match="is a link"), alone(tmp_path / "run" / ".index.lock"):
        pass
    with pytest.raises(OSError, match="is a link"):
        run.write_config({"seed": 0})
    os.mkfifo(tmp_path / "run" / ".alone.lock")
    with pytest.raises(OSError, match="no regular file"), alone(tmp_path / "run" / ".alone.lock"):
        pass
    assert theirs.read_text() == "precious"


@pytest.mark.parametrize("content", ["[1]", '{"status": ', "{}", '{"status": "completed", "final": {}}', None])
def test_a_damaged_summary_is_named(content: str | None, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    if content is None:
        os.mkfifo(run.summary)
    else:
        run.summary.write_text(content)
    with pytest.raises(DamagedSummaryError, match=str(run.summary)):
        read_summary(run)
