"""``rlexp-doctor``: what this machine offers to an experiment, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from rlexp.cli.common import Exit, import_from_here, run_command
from rlexp.config import ConfigError, Problem, Sources, check_targets, load
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.making import HEADLESS, default_to_egl
from rlexp.experiment import ExperimentConfig, check_config
from rlexp.machine import pick_device, usable_cpus
from rlexp.runs.rundir import versions
from rlexp.text import printable

_HELP = """\
rlexp-doctor: what this machine offers to an experiment, and what is missing.

usage: rlexp-doctor [group=option ...] [key=value ...] [--config-dir DIR]

Takes settings as rlexp-train does; without any, it examines the default experiment. DIR is a folder of your own
options. Shows versions, the device, whether MuJoCo can render, whether W&B is logged in, the free disk space, what the
experiment lacks (its environment is built and closed again), and what each extra adds. Trains nothing, and needs no
internet connection.

Exit code 0: the experiment can run here. 1: it cannot; lines that begin with FAIL say why, with the remedy.
2: the arguments are wrong.
"""

EXTRAS: Mapping[str, str] = {
    "envpool": "env.backend=envpool",
    "atari": "env=atari without EnvPool, and videos of its games",
    "box2d": "env=lunar_lander, env=bipedal_walker, env=car_racing, and Gymnasium's other Box2D tasks",
    "dm-control": "env=dm_control",
    "pixels": "env.from_pixels=true, env=car_racing, and videos of classic control",
    "video": "evaluation.video_interval, rlexp-eval video=true",
    "tensorboard": "logger=tensorboard, logger=several",
    "export": "rlexp-export format=onnx",
    "joblib": "launcher=joblib",
    "submitit": "launcher=submitit_slurm, launcher=submitit_local",
    "ray": "launcher=ray, collector=ray",
    "search": "rlexp-search",
    "wandb-workspaces": "rlexp-report --wandb-workspace",
}
"""What each extra of the package adds; those for rlexp's own development are left out."""

_RENDER = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"
_LEAST_DISK = 2**28  # bytes: a run of the default experiment takes a tenth of it


@dataclass(frozen=True)
class Finding:
    """One line of the result.

    Attributes:
        state: ``FAIL`` if the experiment cannot run because of it, ``note`` if something else could not.
        text: what was found.
    """

    state: Literal["ok", "note", "FAIL"]
    text: str


def main() -> None:
    """Console entry."""
    run_command("rlexp-doctor", doctor, _HELP)


def doctor(arguments: list[str]) -> int:
    """Examine this machine for an experiment, and print what was found.

    Args:
        arguments: settings as for ``rlexp-train``, and ``--config-dir``.

    Returns:
        The exit code.

    Raises:
        ConfigError: the arguments are wrong.
    """
    import_from_here()
    parser = argparse.ArgumentParser(prog="rlexp-doctor")
    parser.add_argument("--config-dir", "-cd")
    flags, overrides = parser.parse_known_args(arguments)
    composed = load(overrides, Sources(config_dir=flags.config_dir))
    if composed.values.get("resume") is not None:
        message = "is not examined: leave it out, and give the settings of that run."
        raise ConfigError([Problem("resume", message, str(composed.values["resume"]))])
    experiment = check_config(composed)
    failed = False
    for examine in (_versions, _device, _wandb, partial(_disk, Path(composed.run_dir)), _settings, _rendering):
        for finding in examine(experiment):
            print(f"{finding.state:5} {printable(finding.text)}", flush=True)
            failed |= finding.state == "FAIL"
    print("\nextras")
    for line in _extras():
        print(f"  {line}")
    return Exit.FAILED if failed else Exit.DONE


def _versions(experiment: ExperimentConfig) -> Iterator[Finding]:
    found = ", ".join(f"{name} {version or '-'}" for name, version in versions().items())
    yield Finding("ok", f"{found}, {platform.system()} {platform.machine()}")
    for text in requires("rlexp") or ():
        requirement = Requirement(text)
        if _applies(requirement, ""):
            for problem in unmet(requirement):
                yield Finding("FAIL", f"{problem}: pip install '{requirement}'")


def _device(experiment: ExperimentConfig) -> Iterator[Finding]:
    import torch

    try:
        device = pick_device(experiment.device)
    except ConfigError as error:
        yield from (Finding("FAIL", f"device={experiment.device}: {problem.message}") for problem in error.problems)
        return
    about = f"{usable_cpus()} cores"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about += f", {properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    yield Finding("ok", f"device={experiment.device}: {device}, {about}")


def _rendering(experiment: ExperimentConfig) -> Iterator[Finding]:
    """Render with MuJoCo in a process of its own, which a broken driver may kill; an experiment may do without."""
    default_to_egl()
    backend = os.environ.get("MUJOCO_GL", "the display")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _RENDER], capture_output=True, text=True, timeout=60, check=False
        )
        reason = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    except subprocess.TimeoutExpired:
        reason = "it does not return"
    if reason is None:
        yield Finding("ok", f"rendering: MuJoCo draws with {backend}")
    else:
        yield Finding("note", f"rendering: MuJoCo cannot draw with {backend}: {reason}. {HEADLESS}")


def _wandb(experiment: ExperimentConfig) -> Iterator[Finding]:
    import wandb

    from rlexp.loggers.wandb_login import logged_in

    wandb.setup(settings=wandb.Settings(silent=True))
    mode = os.environ.get("WANDB_MODE")
    configured = logged_in()
    wandb.teardown()
    if configured:
        yield Finding("ok", "W&B: an API key is configured" + (f"; WANDB_MODE={mode}" if mode else ""))
    else:
        yield Finding("note", "W&B: no API key, so runs are kept offline; `wandb login` stores one")


def _disk(run_dir: Path, experiment: ExperimentConfig) -> Iterator[Finding]:
    """The folder in which the run's will be made, or the nearest above it that is there."""
    folder = next(path for path in run_dir.absolute().parents if path.is_dir())
    free = shutil.disk_usage(folder).free
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        yield Finding("FAIL", f"disk: {folder} cannot be written to: {error.strerror}")
        return
    yield Finding("ok" if free >= _LEAST_DISK else "FAIL", f"disk: {free / 2**30:.1f} GiB free in {folder}")


def _settings(experiment: ExperimentConfig) -> Iterator[Finding]:
    """The packages that the experiment's settings name, its environment, and its videos."""
    from rlexp.agent.video import check_recording

    try:
        check_targets(experiment)
        experiment.env.build(1).close()
        if experiment.evaluation.video_interval is not None:
            check_recording(experiment.env, "evaluation.video_interval")
    except ConfigError as error:
        yield from (Finding("FAIL", f"{problem.key}: {problem.message}") for problem in error.problems)
    except SimulatorError as error:
        yield Finding("FAIL", f"env: {error}")
    else:
        yield Finding("ok", f"experiment: env={experiment.env.name} can be built, and no package is missing")


def _extras() -> Iterator[str]:
    needed = [Requirement(text) for text in requires("rlexp") or ()]
    for extra, adds in EXTRAS.items():
        own = [r for r in needed if _belongs(r, extra)]
        missing = [problem for requirement in own for problem in unmet(requirement)]
        state = "missing" if missing else "installed"
        remedy = f"; {', '.join(missing)}: pip install 'rlexp[{extra}]'" if missing else ""
        yield f"{extra:18}{state:11}{adds}{remedy}"


def unmet(requirement: Requirement) -> Iterator[str]:
    """What is not installed of a requirement and its extras, or in another version."""
    try:
        installed = distribution(requirement.name)
    except PackageNotFoundError:
        yield f"{requirement.name} is not installed"
        return
    if not requirement.specifier.contains(installed.version, prereleases=True):
        yield f"{requirement.name} {installed.version} is not {requirement.specifier}"
    for extra in requirement.extras:
        for needed in map(Requirement, installed.requires or ()):
            if _belongs(needed, extra):
                yield from unmet(needed)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether the extra alone asks for it."""
    return not _applies(requirement, "") and _applies(requirement, extra)
