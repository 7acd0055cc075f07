"""``rlexp-train --multirun``: one run for each combination of what the command line lists; ``rlexp-sweep status``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rlexp.cli.common import Exit, import_from_here, run_command, split_trust
from rlexp.config import ConfigError, Problem, Sources, expand_sweeps, groups, load, load_hydra
from rlexp.config.redaction import redact
from rlexp.config.trust import RESOLVED, calls_a_resolver
from rlexp.experiment import SweepConfig, sweep_settings, trust_argument, trusting
from rlexp.runs.stops import Stopped
from rlexp.sweeps import Job, SweepDir, run_jobs
from rlexp.sweeps.folder import COMPLETED, FAILED, SweepPlan
from rlexp.text import printable

_NAME = "rlexp-train"
_HELP = """\
rlexp-sweep: show the status of a sweep.

usage: rlexp-sweep status DIR

  DIR   the folder of a sweep, as rlexp-train --multirun prints it

Prints the number of jobs with each status, the progress of those that have started, why jobs failed, and the time left
at the speed of the completed jobs. Only reads files. To run the remaining jobs: rlexp-train -m sweep.resume=DIR
"""
_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def main() -> None:
    """Console entry of ``rlexp-sweep``."""
    run_command("rlexp-sweep", status, _HELP)


def status(arguments: list[str]) -> int:
    """Print the status of a sweep.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong, or the folder is no sweep's.
    """
    from rlexp.sweeps.status import sweep_status, to_lines

    if len(arguments) != 2 or arguments[0] != "status":
        raise ConfigError(
            [Problem(" ".join(arguments) or "status", "is not a valid command: use rlexp-sweep status DIR.")]
        )
    folder = SweepDir(arguments[1])
    _plan("DIR", folder)
    print("\n".join(to_lines(sweep_status(folder))))
    return Exit.DONE


def is_sweep_setting(text: str) -> bool:
    """Whether an override is a setting of the sweep and not of its jobs."""
    return text.lstrip("+~").startswith(("sweep.", "launcher="))


def sweep(overrides: Sequence[str], sources: Sources) -> int:
    """Run or resume a sweep, and print how its jobs ended.

    Args:
        overrides: of the command line.
        sources: where configs come from.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line or a job's config is wrong; nothing has started.
    """
    _check_secrets(overrides)
    hydra = [text for text in overrides if text.lstrip("+~").startswith(("hydra.", "hydra/", "launcher="))]
    own = [text for text in overrides if is_sweep_setting(text) and text not in hydra]
    task = [text for text in overrides if text not in (*own, *hydra)]
    trust: list[str] | None = None  # the jobs are the user's own
    if any(text.lstrip("+").startswith("sweep.resume=") for text in own):
        trust, task = split_trust(task)
    settings = _settings(own, task, sources)
    if settings.resume is None:
        import_from_here()
        folder, params = _new_folder(hydra, sources)
        jobs = list(expand_sweeps([*params, *task], sources))
    else:
        folder = Path(settings.resume)
        plan = _plan("sweep.resume", SweepDir(folder))
        kept = kept_settings(plan.hydra, hydra)
        check_hydra(kept, trust or ())
        if task:
            import_from_here()
            jobs, trust = list(expand_sweeps(task, sources)), None
        else:
            check_plan(plan, sources, trust or ())
            jobs, sources = plan.jobs, plan.sources
            if trust:
                import_from_here()
        hydra = [*kept, *hydra]
    sources = _absolute(sources)
    plan = SweepPlan(jobs, hydra, sources)
    try:
        ended = run_jobs(folder, jobs, hydra=hydra, sources=sources, fail_fast=settings.fail_fast, trust=trust)
    except Stopped as stopped:
        print(f"{stopped}; the sweep is saved. Resume it with: {_again(folder, plan, trust)}")
        return stopped.exit_code
    return _conclude(ended, folder, plan, trust)


def _again(folder: Path, plan: SweepPlan, trust: Sequence[str] | None) -> str:
    """The command that resumes a sweep: it says again what the plan in the folder may not decide."""
    sources = plan.sources
    flags = {f"--{key.replace('_', '-')}": value for key, value in asdict(sources).items()}
    given = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    if trust is None:
        values = {"jobs": [load(overrides, sources).values for overrides in plan.jobs]}
        trusted = trust_argument(values, (text for job in plan.jobs for text in job))
    else:
        trusted = trusting(trust)
    hydra = [text for text in plan.hydra if not _may_decide(text)]
    return printable(shlex.join([_NAME, "--multirun", *given, f"sweep.resume={folder}", *hydra, *trusted]))


def kept_settings(saved: Sequence[str], given: Sequence[str]) -> list[str]:
    """The saved settings of Hydra that a resumed sweep keeps: all but those given again and another launcher's."""
    again = {_key(text): text for text in given}
    launcher = again.get("launcher")
    other = launcher is not None and launcher.lstrip("+") not in [text.lstrip("+") for text in saved]
    return [t for t in saved if _key(t) not in again and not (other and _key(t).startswith("hydra.launcher."))]


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]


def _may_decide(text: str) -> bool:
    """Whether the plan in a folder may decide a setting of Hydra: which launcher, its numbers, and the folder."""
    key, value = _key(text), text.partition("=")[2]
    number = key.startswith("hydra.launcher.") and value.isdecimal()
    return number or (key == "launcher" and value in groups()["launcher"]) or key == "hydra.sweep.dir"


def _plan(key: str, sweep: SweepDir) -> SweepPlan:
    """The plan in a folder that a setting names."""
    if not sweep.planned:
        raise ConfigError([Problem(key, "has no sweep.json, so it is not a sweep's folder.", str(sweep.path))])
    try:
        return sweep.plan()
    except (Exception, RecursionError) as error:  # whatever a damaged or hostile file leads to
        raise ConfigError([Problem(key, f"sweep.json is damaged: {error!r:.200}", str(sweep.path))]) from error


def check_hydra(saved: Sequence[str], trust: Sequence[str]) -> None:
    """Refuse settings of Hydra which the plan in a folder may not decide: they say what the launcher runs.

    Args:
        saved: the plan's, as far as they are to be used.
        trust: packages that the user trusts.

    Raises:
        ConfigError: with every such setting.
    """
    message = "is a setting of Hydra, which is not taken from a resumed folder: if it is yours, give it again."
    problems = [Problem(text, message) for text in saved if not _may_decide(text)]
    if problems and "hydra" not in trust:
        raise ConfigError(problems)


def check_plan(plan: SweepPlan, given: Sources, trust: Sequence[str]) -> None:
    """Refuse what the plan in a folder may not decide: where configs come from, and what they read on this machine.

    Args:
        plan: of the folder.
        given: where configs come from on this command line.
        trust: packages that the user trusts.

    Raises:
        ConfigError: with every such setting.
    """
    if "hydra" in trust:
        return
    problems = []
    again = asdict(_absolute(given))
    for key, saved in asdict(plan.sources).items():
        if saved is not None and saved != again[key]:
            message = (
                "says where options come from, which is not taken from a resumed folder: if it is yours, give it again."
            )
            problems.append(Problem(f"--{key.replace('_', '-')} {saved}", message))
    for text in sorted({text for job in plan.jobs for text in job}):
        if text.lstrip("+~").startswith("hydra"):
            problems.append(Problem(text, "is a setting of Hydra, which is not taken from a resumed folder."))
        elif calls_a_resolver(text):
            problems.append(Problem(text, RESOLVED))
    if problems:
        raise ConfigError(problems)


def _conclude(jobs: Sequence[Job], folder: Path, plan: SweepPlan, trust: Sequence[str] | None) -> int:
    failed = [job for job in jobs if job.status == FAILED]
    left = [job for job in jobs if job.status not in (COMPLETED, FAILED)]
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for job in failed:
        what = " ".join(text for text in job.overrides if text not in common)
        print(printable(f"{_NAME}: job {job.number} failed ({what}): {job.error}", keep="\n"), file=sys.stderr)
        print(f"Traceback in {job.path / 'train.log'}", file=sys.stderr)
    print(f"{len(jobs) - len(failed) - len(left)} of {len(jobs)} jobs are complete; index in {folder / 'sweep.csv'}")
    if failed or left:
        print(f"resume the others with: {_again(folder, plan, trust)}")
        return Exit.FAILED
    print(f"report on all of them: {shlex.join(['rlexp-report', str(folder)])}")
    return Exit.DONE


def _check_secrets(overrides: Sequence[str]) -> None:
    problems = []
    for text in overrides:
        if redact(text) != text:
            key = text.split("=", 1)[0]
            message = f"is a secret, and a sweep saves its command line: name a variable, '{key}=${{oc.env:MY_KEY}}'."
            problems.append(Problem(key, message))
    if problems:
        raise ConfigError(problems)


def _settings(own: Sequence[str], task: Sequence[str], sources: Sources) -> SweepConfig:
    """The settings of the sweep, from the command line or the configs of its first job."""
    first = next(expand_sweeps(task, sources), [])
    return sweep_settings(load([*first, *own], sources))


def _new_folder(hydra: Sequence[str], sources: Sources) -> tuple[Path, list[str]]:
    """The folder of a new sweep, and the config's own ``hydra.sweeper.params``."""
    where = ["hydra.sweep.dir='${rlexp.run_dir:multirun}'"] if sources.config_path is not None else []
    _, config = load_hydra([*where, *hydra], sources)
    problems = []
    if config.hydra.sweeper["_target_"] != _GRID:
        problems.append(Problem("hydra/sweeper", "is not supported: --multirun runs all combinations of values."))
    if any(text.lstrip("+").startswith("hydra.sweep.subdir=") for text in hydra):
        problems.append(Problem("hydra.sweep.subdir", "is fixed: a job's folder is its number."))
    if any(text.lstrip("+").startswith("hydra.run.dir=") for text in hydra):
        problems.append(Problem("hydra.run.dir", "is for a single run: a sweep's folder is hydra.sweep.dir."))
    if problems:
        raise ConfigError(problems)
    params = config.hydra.sweeper.params or {}
    return Path(config.hydra.sweep.dir), [f"{key}={value}" for key, value in params.items()]


def _absolute(sources: Sources) -> Sources:
    """The same with absolute paths, for commands that run in another folder."""

    def absolute(path: str | None) -> str | None:
        return None if path is None else str(Path(path).resolve())

    return replace(sources, config_dir=absolute(sources.config_dir), config_path=absolute(sources.config_path))
