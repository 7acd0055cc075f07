"""Files and tests that the pages name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = (ROOT, ROOT / "tests", ROOT / "src" / "rlexp", ROOT / "docs")
TESTS = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    files = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md)|test_\w+\.py)(?:::\w+)?`", text)
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!http|#|mailto)([^)\s]+)\)", text)]
    gone = [name for name in files if not any((place / name).exists() for place in PLACES)]
    gone += [link for link in links if link and not (page.parent / link).exists()]
    gone += [name for name in re.findall(r"(?:`|::)(test_\w+)`", text) if name not in TESTS]
    for name, test in re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", text):
        found = [place / name for place in PLACES if (place / name).exists()]
        gone += [f"{name}::{test}" for file in found if f"def {test}(" not in file.read_text()]
    assert not gone


def test_a_page_that_names_tests_is_found() -> None:
    assert sum("::test_" in page.read_text() for page in PAGES) >= 1
