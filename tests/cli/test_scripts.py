"""Every console script that the package installs starts, and answers without torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from commands import run_command

SCRIPTS = [script.name for script in entry_points(group="console_scripts") if script.value.startswith("rlexp.cli.")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, tmp_path: Path) -> None:
    done = run_command(name, "--help", cwd=tmp_path, cold=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}" in done.stdout
    assert done.stderr == ""


def test_all_commands_are_there() -> None:
    assert sorted(SCRIPTS) == [
        f"rlexp-{name}"
        for name in ("config", "doctor", "eval", "export", "report", "search", "sweep", "train", "verify")
    ]
