"""The first pages, run from top to bottom in an empty folder: commands on small budgets, Python as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import TINY, call_command, rows_of, run_command

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["index", "from_stable_baselines3", "from_cleanrl"]
# One batch: their own number of environments and of frames would take minutes.
SHORT = [*TINY, "num_epochs=1", "evaluation.episodes=1"]


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.M):
        first, _, rest = block.partition("\n")
        if file := re.fullmatch(r"# (\S+\.(?:py|yaml))", first):
            Path(file[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(file[1]).write_text(rest)
        elif language == "python":
            exec(with_run(block, tmp_path), {})
        elif language == "sh":
            for line in block.splitlines():
                run_line(line, frames := frames + 256, tmp_path)


def run_line(line: str, frames: int, folder: Path) -> None:
    """Run one command: on one batch more than the page's commands so far, and one job of a sweep."""
    line = with_run(line, folder).replace("0.9,0.99 seed='range(5)' launcher=joblib", "0.9 seed=0")
    name, *arguments = shlex.split(line.replace("episodes=50", "episodes=2"))
    if name == "rlexp-doctor":
        return  # cli/test_doctor.py runs it
    if name == "rlexp-train":
        resumes = any(argument.startswith("resume=") for argument in arguments)
        short = [] if resumes else [*SHORT, "threads=1", *([] if "logger=" in line else ["logger=none"])]
        arguments += [*short, f"total_frames={frames}"]
    # What starts processes, needs a display, or imports a module from where it runs, in a process of its own.
    if any(part in line for part in ("--multirun", "resume=", "video=true", "my_lab")):
        done = run_command(name, *arguments, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert call_command(name, *arguments, cwd=folder) == 0
    if name == "rlexp-train" and "--multirun" not in arguments:
        assert rows_of(newest_run(folder))[-1]["frames"] == frames


def with_run(text: str, folder: Path) -> str:
    return text.replace("RUN_DIR", str(newest_run(folder))) if "RUN_DIR" in text else text


def newest_run(folder: Path) -> Path:
    runs = [path.parent for path in folder.glob("outputs/*/*/summary.json") if path.parents[1].name != "multirun"]
    return max(runs, key=lambda run: (run / "summary.json").stat().st_mtime)
