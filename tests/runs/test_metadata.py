"""``metadata.json`` and ``git.diff``: which code a run was of, without secrets, and running no program of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlexp.runs.rundir import RunDir


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one committed file, in which the test runs."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    (folder / "code.py").write_text("one = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return folder


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True, capture_output=True)


def test_each_session_has_its_code(repository: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    for frames, text in enumerate(("one = 1\n", "one = 2\n", "one = 3\n")):
        (repository / "code.py").write_text(text)
        run.write_metadata({}, {}, frames, 9)
    first, second, third = (session["code"] for session in json.loads(run.metadata.read_text())["sessions"])
    assert second.startswith(f"{first} with changes ")
    assert third.startswith(f"{first} with changes ")
    assert second != third


def written(run: RunDir) -> Any:
    run.path.mkdir(exist_ok=True)
    run.write_metadata({}, {}, 0, 1)
    return json.loads(run.metadata.read_text())["git"]


def test_changes_are_saved_without_secrets_whatever_their_encoding(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcd1234efgh5678")
    (repository / "code.py").write_bytes(
        b'two = 2  # caf\xe9\nkey = "abcd1234efgh5678"\npassword = "hunter22"\nurl = "https://me:hunter22@host/"\n'
    )
    run = RunDir(tmp_path / "run")
    assert written(run)["dirty"]
    diff = (run.path / "git.diff").read_text()
    assert "-one = 1\n+two = 2" in diff
    assert "abcd1234" not in diff
    assert "hunter22" not in diff

    git("checkout", "-q", "code.py")  # a resume of the clean tree has no changes
    assert not written(run)["dirty"]
    assert not (run.path / "git.diff").exists()


def test_what_a_partial_clone_lacks_is_not_fetched(repository: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    for key, value in {
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": str(tmp_path),
        "remote.origin.uploadpack": f"touch {evidence}; false",
    }.items():
        git("config", key, value)
    blob = subprocess.run(["git", "rev-parse", "HEAD:code.py"], check=True, capture_output=True, text=True).stdout
    (repository / ".git" / "objects" / blob[:2] / blob[2:].strip()).unlink()
    (repository / "code.py").write_text("two = 2\n")
    assert written(RunDir(tmp_path / "run")) is None
    assert not evidence.exists()
    subprocess.run(["git", "diff", "HEAD"], capture_output=True)
    assert evidence.exists(), "git itself does not run it: the test shows nothing"


def test_files_outside_of_a_repository_are_not_read(repository: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "code.py").write_text("private = 'diary'\n")
    git("config", "core.worktree", str(home))
    run = RunDir(tmp_path / "run")
    assert written(run) is None
    assert not (run.path / "git.diff").exists()


def test_no_program_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $0 >> {evidence}\ncat\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("*.py filter=a=b diff=c\n*.txt filter=d\n")
    (repository / "notes.txt").write_text("one\n")
    git("add", ".")
    git("commit", "-q", "-m", "second")
    for key in ("core.fsmonitor", "filter.a=b.clean", "filter.d.process", "diff.c.textconv", "diff.external"):
        git("config", key, str(program))
    git("config", "filter.d.required", "true")
    (repository / ".git/hooks/post-index-change").symlink_to(program)
    (repository / "code.py").write_text("two = 2\n")
    (repository / "notes.txt").write_text("two\n")
    run = RunDir(tmp_path / "run")
    assert written(run)["dirty"]
    assert not evidence.exists(), evidence.read_text()
    assert "+two = 2" in (run.path / "git.diff").read_text()
    subprocess.run(["git", "status", "--porcelain"], capture_output=True)
    assert evidence.exists(), "git itself runs none of them: the test shows nothing"
