"""docs/installation.md lists the extras that the package has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from rlexp.cli.doctor import EXTRAS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "installation.md").read_text()


def test_every_extra_is_listed_with_what_it_adds() -> None:
    listed = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", PAGE, re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert listed.keys() == extras.keys()
    for extra, adds in EXTRAS.items():
        assert adds.split(",")[0] in listed[extra].replace("`", "")
