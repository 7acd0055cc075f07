"""``rlexp-doctor``: what it finds on this machine, and on ones where something is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from commands import run_command
from packaging.requirements import Requirement

from rlexp.cli import doctor
from rlexp.cli.common import Exit
from rlexp.config import ConfigError

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_all_is_well_here(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 3
    done = run_command("rlexp-doctor", "env=hopper", cwd=tmp_path, WANDB_API_KEY=key, MUJOCO_GL="none")
    assert done.returncode == Exit.DONE, done.stdout + done.stderr
    checks, extras = done.stdout.split("\nextras\n")
    assert {line.split()[0] for line in checks.splitlines()} <= {"ok", "note"}
    assert "env=hopper can be built" in checks
    assert "note  rendering: MuJoCo cannot draw with none" in checks
    assert "W&B: an API key is configured" in checks
    assert key not in done.stdout + done.stderr
    assert [line.split()[0] for line in extras.splitlines()] == list(doctor.EXTRAS)
    assert not list(tmp_path.glob("outputs"))


def test_options_of_ones_own_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    (tmp_path / "mine" / "optim" / "quick.yaml").write_text("defaults: [adam]\nlr: 2e-3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_rendering", lambda experiment: iter(()))
    assert doctor.doctor(["optim=quick", "--config-dir", "mine"]) == Exit.DONE
    with pytest.raises(ConfigError, match="quick"):
        doctor.doctor(["optim=quick"])
    with pytest.raises(ConfigError, match="--no-such-flag"):
        doctor.doctor(["--no-such-flag"])


def test_extras_are_those_of_the_package() -> None:
    extras = PROJECT["optional-dependencies"].keys()
    assert doctor.EXTRAS.keys() == extras - {"bench", "dev", "docs"}


def test_what_the_experiment_lacks_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(doctor, "_LEAST_DISK", 2**80)
    monkeypatch.setattr(doctor, "_rendering", lambda experiment: iter(()))
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "nowhere>=1 ; extra == 'ray'"])
    assert doctor.doctor(["logger=tensorboard", "device=cuda:63"]) == Exit.FAILED
    checks, extras = capsys.readouterr().out.split("\nextras\n")
    failed = [line for line in checks.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 4
    assert re.search(r"torch \S+ is not >=99: pip install 'torch>=99'", failed[0])
    assert "there is no such device" in failed[1]
    assert "GiB free" in failed[2]
    assert "pip install 'rlexp[tensorboard]'" in failed[3]
    assert re.search(r"ray +missing .*nowhere is not installed: pip install 'rlexp\[ray\]'", extras)


def test_a_folder_or_an_environment_that_is_of_no_use_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(doctor, "_rendering", lambda experiment: iter(()))
    assert doctor.doctor(["env=hopper", "+env.kwargs.xml_file=nowhere.xml"]) == Exit.FAILED
    printed = capsys.readouterr().out
    assert f"FAIL  disk: {tmp_path} cannot be written to: Permission denied" in printed
    assert "FAIL  env" in printed
    assert doctor.doctor(["hydra.run.dir=/proc/x/run"]) == Exit.FAILED
    assert "FAIL  disk: /proc cannot be written to" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is not examined"):
        doctor.doctor(["resume=run"])


def test_an_extra_of_an_extra_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_box2d(name: str) -> Distribution:
        if name.lower() == "box2d":
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(doctor, "distribution", without_box2d)
    assert list(doctor.unmet(Requirement("gymnasium>=1"))) == []
    assert [text.lower() for text in doctor.unmet(Requirement("gymnasium[box2d]"))] == ["box2d is not installed"]
