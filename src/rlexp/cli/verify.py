"""``rlexp-verify``: repeat the first batches of a run and compare every number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlexp.cli.common import Exit, import_from_here, read_settings, report_error, run_command, split_secrets
from rlexp.config import Config, ConfigError, Count, Problem
from rlexp.text import printable

_HELP = """\
rlexp-verify: repeat the first batches of a run from its own config, and compare every number.

usage: rlexp-verify RUN_DIR [iterations=3] [resume=true] [trust=[PACKAGE,...]]

  iterations   batches to repeat; their rows of metrics.jsonl are compared, evaluations and timings aside; each row
               holds a hash of the parameters after the batch
  resume       train the first 2 * iterations batches twice instead, once without a break and once resumed half-way, in
               processes of their own: does the checkpoint hold all state of environments and callbacks?
  trust        packages that the run may import besides what rlexp itself builds, e.g. trust=[my_lab]; with it, modules
               may lie where the command runs (docs/security.md)
  env.kwargs.KEY  the value of a secret, which was not saved

Exit code 0: reproducible. 1: not reproducible; the first difference is printed. 2: it cannot be repeated here.
"""


class VerifyConfig(Config):
    """Settings of ``rlexp-verify``."""

    run_dir: Annotated[str, Field(min_length=1)]
    iterations: Count = 3
    resume: bool = False
    trust: list[str] = Field(default=[])


def main() -> None:
    """Console entry."""
    run_command("rlexp-verify", verify, _HELP)


def verify(arguments: list[str]) -> int:
    """Repeat the first batches of a run and compare them.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong.
    """
    arguments, secrets = split_secrets(arguments)
    # A multirun may name its folders by what was set, so that a folder's name can hold an equals sign.
    named = [f"run_dir={a}" if "=" not in a or Path(a).is_dir() else a for a in arguments]
    folders = [a.removeprefix("run_dir=") for a in named if a.startswith("run_dir=")]
    problems = [Problem(folder, "is a second folder: one run is verified at a time.") for folder in folders[1:]]
    settings = read_settings(VerifyConfig, named, problems, paths=("run_dir",))
    if settings.trust:
        import_from_here()
    run_dir = Path(settings.run_dir)
    if not (run_dir / "metrics.jsonl").is_file():
        raise ConfigError([Problem("run_dir", "has no metrics.jsonl, so it is not a run's folder.", str(run_dir))])

    from rlexp.runs.rundir import versions
    from rlexp.training.verify import Difference, UnreadableRunError, resume_again, train_again, versions_at_the_start
    from rlexp.workers import WorkerError

    try:
        result = (resume_again if settings.resume else train_again)(
            run_dir, settings.iterations, settings.trust, secrets
        )
    except (UnreadableRunError, WorkerError, OSError) as error:
        report_error("rlexp-verify", RuntimeError(f"{run_dir} cannot be repeated: {error}"))
        return Exit.WRONG_CONFIG
    if not isinstance(result, Difference):
        kind = "resumes exactly" if settings.resume else "reproducible"
        print(printable(f"{kind}: {result} iterations of {run_dir}, every number the same"))
        return Exit.DONE
    print(printable(f"{'does not resume exactly' if settings.resume else 'not reproducible'}: {result}"))
    recorded = versions_at_the_start(run_dir)
    for package in (name for name in versions() if name in recorded):
        if recorded[package] != versions()[package]:
            print(printable(f"{package} was {recorded[package]} and is {versions()[package]}"))
    return Exit.FAILED
