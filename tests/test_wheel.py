"""The wheel of the sdist, alone in an empty folder, is a working ``rlexp-train``; the image installs what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import TINY, clean_environment, only_run

ROOT = Path(__file__).parents[1]


@pytest.mark.wheel
def test_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    def python(*arguments: str, **env: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=clean_environment(tmp_path) | env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    python("-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))  # the wheel from the sdist
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    assert wheel.name.split("-")[1] == sdist.name.removeprefix("rlexp-").removesuffix(".tar.gz")
    python("-m", "twine", "check", "--strict", str(wheel), str(sdist))
    site = tmp_path / "site"
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    assert (site / "rlexp" / "conf" / "train.yaml").is_file()
    assert (site / "rlexp" / "py.typed").is_file()

    # PYTHONPATH comes before the editable install of this checkout.
    origin = "import rlexp, pathlib; assert pathlib.Path(rlexp.__file__).is_relative_to(pathlib.Path('site').resolve())"
    python("-c", origin, PYTHONPATH=str(site))
    python(str(site / "bin" / "rlexp-train"), *TINY, "logger=none", PYTHONPATH=str(site))
    summary = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert summary["status"] == "completed"


def test_the_image_installs_what_the_package_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (requirement for requirement in project["dependencies"] if requirement.startswith("torch>"))
    image = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"^ARG EXTRAS=(.*)$", image, re.M)[0].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()
    for copied in re.findall(r"^COPY (.*) \S+$", image, re.M):
        for name in copied.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    for text in (image, container["postCreateCommand"]):
        assert torch in text
