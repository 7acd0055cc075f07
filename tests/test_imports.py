"""The README's table of rooms is how the code is built: what a room imports lies below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import rlexp

SOURCE = Path(rlexp.__file__).parent
README = Path(__file__).parent.parent / "README.md"


def rooms() -> dict[str, int]:
    """Each room's row in the table, from the top."""
    table = README.read_text(encoding="utf-8").partition("## How it is built")[2].splitlines()
    rows = [re.findall(r"\(src/rlexp/(\w+)", line) for line in table if line.startswith("| [")]
    return {room: depth for depth, row in enumerate(rows) for room in row}


def imported(module: Path) -> Iterator[str]:
    """The rooms that a module imports when it runs, in functions too."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlexp."):
            yield str(node.module).split(".")[1]


def test_every_room_is_in_the_table() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__pycache__", "__init__", "py", "conf"} == rooms().keys()


def test_rooms_know_only_those_below() -> None:
    depth = rooms()
    upwards = {
        f"{module.relative_to(SOURCE)} imports {room}"
        for module in SOURCE.rglob("*.py")
        if module != SOURCE / "__init__.py"
        for room in imported(module)
        if depth[room] < depth[module.relative_to(SOURCE).parts[0].removesuffix(".py")]
    }
    assert not upwards
