"""What docs/evaluation.md shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import TINY, call_command

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def here(text: str, run_dir: Path) -> str:
    return text.replace("RUN_DIR", str(run_dir)).replace("000000051200", "000000000512")


BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
LINES = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("rlexp-export")])
def test_command(line: str, run_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "video=true" in line:
        request.getfixturevalue("egl")
        monkeypatch.setenv("MUJOCO_GL", "egl")
    name, *arguments = shlex.split(here(line, run_dir).replace("episodes=100", "episodes=5"))
    if name == "rlexp-train":
        arguments += [*TINY, "logger=none", "threads=1", "total_frames=256"]
    assert call_command(name, *arguments, cwd=run_dir) == 0


@pytest.mark.usefixtures("quickly_checked")
def test_python_reads_what_is_exported(run_dir: Path) -> None:
    for language, block in BLOCKS:
        if language == "python":
            exec(here(block, run_dir), {})
        for line in block.splitlines():
            if line.startswith("rlexp-export"):
                name, *arguments = shlex.split(here(line, run_dir))
                assert call_command(name, *arguments, cwd=run_dir) == 0
