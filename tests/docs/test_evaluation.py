"""What docs/evaluation.md shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import TINY, run_command

from rlexp.cli.evaluate import evaluate
from rlexp.cli.export import export

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
COMMANDS = {"rlexp-eval": evaluate, "rlexp-export": export}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def here(text: str, run_dir: Path) -> str:
    return text.replace("RUN_DIR", str(run_dir)).replace("000000051200", "000000000512")


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_command(line: str, run_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "video=true" in line:
        request.getfixturevalue("egl")
        monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.chdir(run_dir)
    name, *arguments = shlex.split(here(line, run_dir))
    if name == "rlexp-train":
        assert run_command(name, *arguments, *TINY, "logger=none", cwd=run_dir).returncode == 0
        return
    assert COMMANDS[name](arguments) == 0


def test_python(run_dir: Path) -> None:
    assert export([f"checkpoint={run_dir}"]) == 0
    for block in blocks("python"):
        exec(here(block, run_dir), {})
