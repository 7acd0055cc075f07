"""The wheel alone, in an empty folder, is a working ``rlexp-train``."""

from __future__ import annotations

import json
import subprocess
import sys
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

    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
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
