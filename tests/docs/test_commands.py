"""Every training that a page shows is one that its settings allow; what other tests run is not looked at again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlexp.config import Sources, expand_sweeps, load
from rlexp.experiment import check_config

ROOT = Path(__file__).parents[2]
RUN_ELSEWHERE = ("index", "from_stable_baselines3", "from_cleanrl", "tutorial", "extending", "evaluation")
PAGES = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.stem not in RUN_ELSEWHERE)]
# What stands for the reader's own, what continues a run, and what only some machines have.
NOT_HERE = re.compile(r"my_module|RUN_DIR|SWEEP_DIR|resume=|outputs/|--config-dir|--shell-completion|\.\.\.")


def trainings(page: Path) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.M)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(("rlexp-train", "torchrun"))]
    commands = [shlex.split(line, comments=True) for line in lines if not NOT_HERE.search(line)]
    return [command[command.index("rlexp-train") + 1 if command[0] == "torchrun" else 1 :] for command in commands]


@pytest.mark.parametrize("page", [page for page in PAGES if trainings(page)], ids=lambda page: page.stem)
def test_its_settings_are_right(page: Path) -> None:
    for arguments in trainings(page):
        overrides = [argument for argument in arguments if argument != "--multirun"]
        for job in expand_sweeps(overrides, Sources()) if "--multirun" in arguments else [overrides]:
            check_config(load(job))
            break  # the other jobs differ in values of the same settings
