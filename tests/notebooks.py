"""Notebooks run from top to bottom, in a process forked from a warm one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from commands import clean_environment
from warm import processes


def run_notebook(path: Path, cwd: Path, replaced: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a notebook's code in IPython, with some of its text replaced; its exit code and all that it printed."""
    output = cwd / "output.txt"
    process = processes.Process(target=_run, args=(path, cwd, dict(replaced), clean_environment(cwd), output))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    return process.exitcode, output.read_text()


def _run(path: Path, cwd: Path, replaced: dict[str, str], environment: dict[str, str], output: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with output.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
        shell = InteractiveShell.instance()
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            for old, new in replaced.items():
                text = text.replace(old, new)
            if cell["cell_type"] == "code" and not shell.run_cell(text).success:
                sys.exit(1)
