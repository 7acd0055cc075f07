"""The console commands, run as a user would run them: from a warm process, or cold."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import entry_points
from multiprocessing import util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import warm
from warm import processes

from rlexp import workers
from rlexp.runs import session

# Batches of 256 frames from four environments: every part of a run, in a second or two.
TINY = [
    "total_frames=1024",
    "collector.frames_per_batch=256",
    "env.num_envs=4",
    "minibatch_size=64",
    "num_epochs=2",
    "env.init_random_steps=64",
    "evaluation.interval=512",
    "evaluation.episodes=3",
    "checkpoint.interval=512",
]


@functools.cache
def _matplotlib_cache() -> str:
    """One for all commands: matplotlib would otherwise index the fonts in each new home."""
    return tempfile.mkdtemp(prefix="matplotlib_")


def without_plots() -> None:
    """End runs of this process without their plots, which take half a second; `tiny_run`, started cold, has them."""
    session.plot_training = lambda rows, folder: []  # type: ignore[attr-defined]


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user with no W&B account and no thread settings of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))}
    ours = {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "MPLCONFIGDIR": _matplotlib_cache()}
    if "PYTHONPATH" in kept and "PYTHONPATH" in variables:
        variables["PYTHONPATH"] += os.pathsep + kept["PYTHONPATH"]
    return kept | ours | variables


def console_script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def run_command(
    name: str, *arguments: str, cwd: Path, timeout: float = 300, cold: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a console command of this environment in ``cwd``.

    Args:
        name: of the command.
        arguments: of its command line.
        cwd: where it runs, and its home.
        timeout: seconds; it is killed after them.
        cold: whether the installed script is started, by a new interpreter. Otherwise the function that the script
            calls runs in a process forked from a warm one.
        variables: of the environment, beside those of `clean_environment`.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    environment = clean_environment(cwd, **variables)
    if cold:
        return subprocess.run(
            [console_script(name), *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = start_command(name, *arguments, cwd=cwd, stdout=stdout, stderr=stderr, **variables)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([name, *arguments], timeout, stdout.read_bytes(), stderr.read_bytes())
        return subprocess.CompletedProcess([name, *arguments], process.exitcode, stdout.read_text(), stderr.read_text())


def start_command(
    name: str, *arguments: str, cwd: Path, stdout: Path, stderr: Path, **variables: str
) -> ForkServerProcess:
    """Start the function of a console command in a process forked from a warm one."""
    warm.start()
    streams = (str(stdout), str(stderr))
    process = processes.Process(
        target=_main, args=(name, arguments, str(cwd), clean_environment(cwd, **variables), streams)
    )
    process.start()
    return process


def launch(arguments: list[str], cwd: Path, command: str = "train", **variables: str) -> ForkServerProcess:
    """Start a command that writes to ``output.txt``."""
    output = cwd / "output.txt"
    return start_command(f"rlexp-{command}", *arguments, cwd=cwd, stdout=output, stderr=output, **variables)


def complete(arguments: list[str], cwd: Path, **variables: str) -> None:
    process = launch(arguments, cwd, **variables)
    process.join(120)
    assert process.exitcode == 0, (cwd / "output.txt").read_text()


def _main(
    name: str, arguments: tuple[str, ...], cwd: str, environment: dict[str, str], streams: tuple[str, str]
) -> None:
    """Make of a forked process what a new interpreter would be, and call the command's function."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for path in streams]
    for descriptor, standard in zip([os.open(os.devnull, os.O_RDONLY), *descriptors], (0, 1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    # The test's own folder of modules comes first, and what the suite itself added to the path is gone.
    ours = str(Path(__file__).parent)
    sys.path[:] = [
        *environment.get("PYTHONPATH", "").split(os.pathsep),
        *(path for path in sys.path if path != ours),
    ]
    importlib.invalidate_caches()
    warnings.simplefilter("default")
    workers._start_program = warm.start_program  # type: ignore[assignment]
    util.spawnv_passfds = warm.start_job_server  # type: ignore[assignment]
    sys.argv = [console_script(name), *arguments]
    (script,) = entry_points(group="console_scripts", name=name)
    try:
        script.load()()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _module(command: str) -> Any:
    name = "evaluate" if command == "rlexp-eval" else command.removeprefix("rlexp-")
    return importlib.import_module(f"rlexp.cli.{name}")


def call_command(name: str, *arguments: str, cwd: Path) -> int:
    """The exit code of a console command's function, called in this process: where the command itself is not tested."""
    module, path = _module(name), [*sys.path]
    try:
        with contextlib.chdir(cwd):
            code: int = getattr(module, module.__name__.rpartition(".")[2])([*arguments])
            return code
    finally:
        sys.path[:] = path
        for own in [
            key for key, value in sys.modules.items() if str(getattr(value, "__file__", "")).startswith(f"{cwd}/")
        ]:
            del sys.modules[own]


def only_run(cwd: Path) -> Path:
    """The folder of the one run under ``cwd``."""
    (found,) = cwd.glob("outputs/*/*")
    return found


def rows_of(run_dir: Path, *, timings: bool = False) -> list[dict[str, Any]]:
    """The metrics rows of a run, without what the clock decides unless asked for."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if timings or not k.startswith("time/")} for row in rows]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between opening and reading
        return False
