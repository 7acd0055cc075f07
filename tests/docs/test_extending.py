"""Code and options from outside: the pages' own examples, and an installed package that rlexp has never seen."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY, call_command, clean_environment, only_run, rows_of, run_command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = re.findall(r"```(?:yaml|python|xml)\n(?:#|<!--) (\S+)(?: -->)?\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
# One batch: their own number of environments and of frames would take minutes.
SHORT = [*TINY, "total_frames=256", "num_epochs=1", "evaluation.episodes=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


# With options of one's own, and with a module of one's own where the command runs.
ALONE = {next(line for line in COMMANDS if "--config-dir" in line), next(line for line in COMMANDS if "my_lab" in line)}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_the_page_runs(line: str, folder: Path) -> None:
    name, *arguments = shlex.split(line)
    if name == "rlexp-train":
        arguments += [*SHORT, "logger=none", "threads=1"]
    if line in ALONE:
        done = run_command(name, *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    else:
        assert call_command(name, *arguments, cwd=folder) == 0
    if name == "rlexp-train":
        last = rows_of(only_run(folder))[-1]
        assert last["frames"] == 256
        assert ("actor/norm" in last) == ("Norms" in line)


def test_misspelt_argument_of_a_target_is_refused(folder: Path) -> None:
    done = run_command("rlexp-train", "policy.actor_network={_target_: my_lab.Residual, widht: 64}", cwd=folder)
    assert done.returncode == 2
    assert "policy.actor_network.widht" in done.stderr
    assert "Did you mean width?" in done.stderr


@pytest.mark.wheel
def test_installed_package_adds_env_policy_and_loss(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--target", site, ROOT / "tests" / "docs" / "extension"], check=True, env=clean_environment(tmp_path)
    )

    listing = run_command("rlexp-config", "list", cwd=tmp_path, PYTHONPATH=str(site))
    for option in ("acme_drift", "acme_linear", "acme_halved"):
        assert option in listing.stdout
    options = ["env=acme_drift", "policy=acme_linear", "loss=acme_halved", "policy.scale_lb=0.01", "logger=none"]
    done = run_command("rlexp-train", *options, *SHORT, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.parent.name == "acme_drift"
    assert rows_of(run_dir)[-1]["frames"] == 256

    wrong = run_command("rlexp-train", *options, "policy.scale_lbb=1", cwd=tmp_path, PYTHONPATH=str(site))
    assert (wrong.returncode, "Did you mean policy.scale_lb?" in wrong.stderr) == (2, True)

    jobs = ["--multirun", *options, "seed=0,1", *SHORT]
    done = run_command("rlexp-train", *jobs, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/multirun/*/*/summary.json"))) == 2

    blocked = run_command("rlexp-eval", f"checkpoint={run_dir}", cwd=tmp_path, PYTHONPATH=str(site))
    assert blocked.returncode == 2
    assert "env.id=acme_rl.envs" in blocked.stderr
    assert "is blocked" in blocked.stderr
    allowed = run_command("rlexp-eval", f"checkpoint={run_dir}", "trust=[acme_rl]", cwd=tmp_path, PYTHONPATH=str(site))
    assert allowed.returncode == 0, allowed.stderr
    final = json.loads((run_dir / "summary.json").read_text())["final"]["eval/return"]
    assert json.loads(allowed.stdout.splitlines()[-1])["mean_return"] == final
