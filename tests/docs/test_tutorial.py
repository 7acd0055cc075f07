"""docs/tutorial.md: every command of the page is run, on a budget of its own, and its Python as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import TINY, call_command, only_run, rows_of, run_command

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
FILES = [block.removeprefix("# ").split("\n", 1) for block in blocks("yaml")]


# A command of each kind, and what needs a display or a service, in a process of its own.
ALONE = {next(line for line in COMMANDS if line.startswith(name)) for name in ("rlexp-train", "rlexp-config")}
ALONE |= {line for line in COMMANDS if "video" in line or "wandb" in line}


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, *arguments = shlex.split(line)
    for path, text in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    if name == "rlexp-train":
        arguments += [*TINY, "total_frames=256", "num_epochs=1", "evaluation.episodes=1", "threads=1"]
        if "video_interval" in line:
            request.getfixturevalue("egl")
            arguments.append("evaluation.video_interval=256")
        if "logger" not in line:
            arguments.append("logger=none")
    if line in ALONE:
        done = run_command(name, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        assert call_command(name, *arguments, cwd=tmp_path) == 0
    if name == "rlexp-train":
        run = only_run(tmp_path)
        assert rows_of(run)[-1]["frames"] == 256
        assert len(list(run.glob("videos/*.mp4"))) == ("video" in line)


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(block, {})
    assert "normalization constant shape: torch.Size([11])" in capsys.readouterr().out
