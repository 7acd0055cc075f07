"""The site's generated pages: every option and setting is on them, and links lead where they should."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlexp.collectors import MultiSyncCollectorConfig
from rlexp.envs import GymConfig
from rlexp.experiment import ExperimentConfig
from rlexp.losses import KLPenaltyPPOConfig

ROOT = Path(__file__).parents[2]


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = hooks()


def rows(text: str, heading: str) -> dict[str, tuple[str, ...]]:
    """The table of settings below a heading, by setting."""
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return {
        cells[0].strip("`"): tuple(cells[1:])
        for cells in re.findall(r"^\| (.+?) \| (.*?) ?\| (.*?) ?\| (.*?) \|$", section, re.M)
    }


def test_every_option_is_on_the_page_of_its_group() -> None:
    for group, options in SITE.options().items():
        text = SITE.group_page(group)
        for name, description in options.items():
            assert f"`{group}={name}`" in text
            assert description.split()[0] in text
        for line in re.findall(r"^\| `.*$", text, re.M):
            assert not line.endswith("|  |"), f"{line} is empty"


@pytest.mark.parametrize(
    ("schema", "group", "heading"),
    [(GymConfig, "env", "env=gym"), (KLPenaltyPPOConfig, "loss", "loss=kl_ppo"),
     (MultiSyncCollectorConfig, "collector", "collector=multi_sync")],
)  # fmt: skip
def test_every_setting_of_a_schema_is_on_its_page(schema: type[BaseModel], group: str, heading: str) -> None:
    found = rows(SITE.group_page(group), f"## `{heading}`")
    fields = [field for field in schema.model_fields if field != "pixels"]
    assert found.keys() - {"setting", "---"} >= {*fields}


def test_types_and_meanings_are_those_of_schema_and_yaml() -> None:
    found = rows(SITE.group_page("env"), "## `env=gym`")
    assert found["num_envs"] == ("`16`", "integer ≥ 1", "parallel simulators")
    assert found["max_episode_steps"][:2] == ("`null`", "integer ≥ 1, `null`")
    assert found["pixels.size"] == ("`84`", "integer ≥ 1", "width and height of the grayscale image")
    assert found["transforms"][2] == "the torchrl transforms, in order; names are free"
    top = rows(SITE.experiment_page(), "# Experiment")
    assert top["kernels"][:2] == ("`auto`", "`auto`, `false`")
    assert {*ExperimentConfig.model_fields} - SITE.options().keys() <= top.keys()
    assert {"resume", "trust", "sweep.resume", "sweep.fail_fast"} <= top.keys()


def test_the_navigation_has_every_page_once() -> None:
    listed = re.findall(r"^ +- (?:[\w-]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    written = [path.name for path in (ROOT / "docs").glob("*.md")]
    generated = [f"options/{group.replace('/', '_')}.md" for group in SITE.options()]
    generated += [f"reference/{name}.md" for name in SITE.REFERENCE]
    others = ["options/experiment_settings.md", "reference/commands.md", *SITE.TOP.values()]
    assert sorted(listed) == sorted([*written, *generated, *others])


def test_what_the_reference_shows_is_there() -> None:
    for _, objects in SITE.REFERENCE.values():
        for path in objects:
            place = ROOT / "src" / path.replace(".", "/")
            module = (
                place.parent.with_suffix(".py")
                if place.parent.with_suffix(".py").is_file()
                else place.parent / "__init__.py"
            )
            defined = re.search(rf"\b{place.name}\b", module.read_text())
            assert (place / "__init__.py").is_file() or place.with_suffix(".py").is_file() or defined, path


@pytest.mark.parametrize(
    ("origin", "link", "leads_to"),
    [
        ("docs/sweeps.md", "search.md#pruning", "search.md#pruning"),
        ("docs/sweeps.md", "../README.md#use-it", "overview.md#use-it"),
        ("README.md", "docs/sweeps.md", "sweeps.md"),
        ("README.md", "CONTRIBUTING.md", "contributing.md"),
        ("docs/index.md", "../examples/first_run.ipynb", "notebook.md"),
        ("examples/first_run.ipynb", "../docs/metrics.md", "metrics.md"),
        ("docs/sweeps.md", "../src/rlexp/machine.py", "https://code.example/rlexp/blob/main/src/rlexp/machine.py"),
        ("docs/sweeps.md", "https://hydra.cc", "https://hydra.cc"),
        ("docs/sweeps.md", "#failures", "#failures"),
    ],
)
def test_links_lead_to_the_pages_of_the_site(origin: str, link: str, leads_to: str) -> None:
    found = SITE.site_links(f"see [it]({link}).", origin, "https://code.example/rlexp/")
    assert found == f"see [it]({leads_to})."


def test_links_to_code_are_text_where_no_repository_is_known_and_code_is_left_alone() -> None:
    assert SITE.site_links("[`a.py`](../src/a.py)", "docs/x.md", "") == "`a.py`"
    code = "```python\nx = y[0](../z)\n```\n"
    assert SITE.site_links(code, "docs/x.md", "") == code
