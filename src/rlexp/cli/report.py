"""``rlexp-report``: many runs to tables with confidence intervals, pictures and one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlexp.cli.common import Exit, read_settings, run_command
from rlexp.config import ConfigError, Problem, Spec

_HELP = """\
rlexp-report: what many runs say together.

usage: rlexp-report DIR... [out=report] [threshold=RETURN] [ignore=[SETTING,...]]

  DIR         a run's folder, or a folder with runs anywhere below it, such as outputs/ or a multirun's
  out         folder for the page (index.html), the tables (Markdown, LaTeX, CSV) and the pictures
  threshold   return to reach, for the frames and seconds it takes: one for all environments, or
              threshold.hopper=3000; default: Gymnasium's registered reward threshold
  ignore      settings that do not tell configurations apart, besides seed, logger, checkpoint, resume, threads

Prints the table as Markdown and where the files are.
"""


class ReportSettings(Spec):
    """What ``rlexp-report`` takes."""

    dirs: Annotated[list[str], Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)] = "report"
    threshold: float | dict[str, float] | None = None
    ignore: list[str] = Field(default=[])


def main() -> None:
    """Console entry."""
    run_command("rlexp-report", report)


def report(arguments: list[str]) -> int:
    """Report on the runs in some folders.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong.
    """
    if {"--help", "-h"} & set(arguments):
        print(_HELP)
        return Exit.DONE
    settings = _settings(arguments)

    from rlexp.report import ReportError, load_runs, make_report, markdown, write_report

    try:
        runs = load_runs(settings.dirs)
        made = make_report(runs, settings.threshold, settings.ignore)
    except ReportError as error:
        print(f"rlexp-report: {error}", file=sys.stderr)
        return Exit.FAILED
    environments = {group.environment for group in made.groups}
    if isinstance(settings.threshold, dict) and (unknown := settings.threshold.keys() - environments):
        message = f"no run is in this environment. There are: {', '.join(sorted(environments))}."
        raise ConfigError([Problem(f"threshold.{name}", message) for name in sorted(unknown)])
    for run in made.left_out:
        if run.status == "unreadable":
            print(f"rlexp-report: left out, mend or remove it: {run.problem}", file=sys.stderr)
    try:
        files = write_report(made, Path(settings.out))
    except OSError as error:
        raise ConfigError([Problem("out", f"cannot be written to: {error}.", settings.out)]) from error
    print(markdown(made))
    print("\n".join(str(file) for file in files))
    return Exit.DONE


def _settings(arguments: list[str]) -> ReportSettings:
    # A multirun may name its folders by what was set, so that a folder's name can hold an equals sign.
    dirs = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    if not dirs:
        raise ConfigError([Problem("DIR", "is missing; name a run's folder, or one with runs below it.")])
    missing = [Problem(path, "is not a folder; name a run's folder, or one with runs below it.")
               for path in dirs if not Path(path).is_dir()]  # fmt: skip
    pairs = [argument for argument in arguments if argument not in dirs]
    return read_settings(ReportSettings, pairs, missing, dirs=dirs)
