"""The README's table of the architecture is how the code is built: imports lead down, and nowhere in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import rlexp

SOURCE = Path(rlexp.__file__).parent
README = Path(__file__).parent.parent / "README.md"


def floors() -> list[list[str]]:
    """The rows of the README's table of the architecture, from top to bottom: the rooms of each."""
    table = README.read_text(encoding="utf-8").partition("| module | what it does |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| [")]
    return [re.findall(r"\(src/rlexp/(\w+)", cell) for cell in cells]


def modules(source: Path) -> dict[str, Path]:
    """The files of the package by module name."""
    found = {}
    for path in source.rglob("*.py"):
        parts = path.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, names: Iterable[str]) -> Iterator[str]:
    """The modules of the package that a file imports when it runs, in functions too; types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def graph(source: Path) -> dict[str, set[str]]:
    """From each module to those that it imports; a package stands for what its ``__init__`` re-exports."""
    files = modules(source)
    return {name: {other for other in imported(path, files) if other in files} for name, path in files.items()}


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The modules along one circle of imports, the first again at the end; empty where there is none."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges[name]):
            if found := search(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := search(name, []))), [])


def upwards(edges: Mapping[str, set[str]]) -> list[str]:
    """Imports of another room that do not lead to a lower row of the table."""
    depth = {room: i for i, floor in enumerate(floors()) for room in floor}
    found = []
    for name, others in edges.items():
        for other in others:
            if name.count(".") and other.count("."):
                room, below = name.split(".")[1], other.split(".")[1]
                if room != below and depth[room] > depth[below]:
                    found.append(f"{name} imports {other}")
    return sorted(found)


def test_every_room_has_a_floor() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__pycache__", "__init__", "py", "conf"} == {room for floor in floors() for room in floor}


def test_rooms_import_only_those_below() -> None:
    assert upwards(graph(SOURCE)) == []


def test_nothing_imports_itself_in_a_circle_of_files() -> None:
    assert circle(graph(SOURCE)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ({"envs/a.py": "from rlexp.runs import b", "runs/b.py": ""}, ["rlexp.envs.a imports rlexp.runs.b"]),
        ({"envs/a.py": "def f():\n    import rlexp.policies.b", "policies/b.py": ""},
         ["rlexp.envs.a imports rlexp.policies.b"]),
        ({"runs/a.py": "from rlexp.envs import b", "envs/b.py": ""}, []),
        ({"envs/a.py": "if TYPE_CHECKING:\n    from rlexp.runs import b", "runs/b.py": ""}, []),
    ],
)  # fmt: skip
def test_an_import_that_runs_back_up_is_found(text: dict[str, str], found: list[str], tmp_path: Path) -> None:
    assert upwards(graph(written(tmp_path, text))) == found


def test_a_circle_within_a_room_is_found(tmp_path: Path) -> None:
    source = written(
        tmp_path,
        {
            "envs/a.py": "from rlexp.envs.b import x",
            "envs/b.py": "def f():\n    from rlexp.envs import c",
            "envs/c.py": "from rlexp.envs.a import y",
        },
    )
    assert circle(graph(source)) == ["rlexp.envs.a", "rlexp.envs.b", "rlexp.envs.c", "rlexp.envs.a"]
    (source / "envs" / "c.py").write_text("if TYPE_CHECKING:\n    from rlexp.envs.a import y")
    assert circle(graph(source)) == []


def written(folder: Path, text: Mapping[str, str]) -> Path:
    source = folder / "rlexp"
    for name, content in {"__init__.py": "", **text}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(content)
    return source
