"""``rlexp-report``: tables with confidence intervals, plots and one page from many runs, or the page of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

from rlexp.cli.common import Exit, read_settings, run_command
from rlexp.config import Config, ConfigError, Positive, Problem, did_you_mean, flat, load
from rlexp.text import printable

if TYPE_CHECKING:
    from rlexp.report import Report

_HELP = """\
rlexp-report: summarise many runs in tables, plots and one page, or show one run.

usage: rlexp-report DIR... [out=report] [threshold=RETURN] [reference.ENV=[RETURN,RETURN]] [ignore=[SETTING,...]]
                    [--wandb-workspace[=online]]
       rlexp-report DIR... --watch [interval=2]

  DIR         a run's folder, or a folder with runs anywhere below it, such as outputs/ or a multirun's; the page of
              one run's folder has all its plots, its video, its settings and the commands to go on, finished or not
  out         folder for the page (index.html), the tables (Markdown, LaTeX, CSV) and the plots
  threshold   return to reach, for the frames and seconds it takes: one for all environments, or
              threshold.hopper=3000; default: Gymnasium's registered reward threshold; null: none
  reference   reference.hopper=[17,3372], and so for every environment: the returns that count as 0 and 1 where
              scores are aggregated over environments, such as random actions' and a published one; default: the
              lowest and the highest final evaluation in the report
  ignore      settings in which runs of one configuration may differ, besides seed, logger, checkpoint, resume,
              threads, env.num_workers, checks, evaluation.video_interval

  --wandb-workspace   also write a W&B dashboard for these runs, OUT/wandb_workspace.json; =online saves it in their
                      project as well (pip install 'rlexp[wandb-workspaces]')
  --watch             follow the runs in the terminal, until all have ended or Ctrl-C; writes nothing
  interval            seconds between refreshes of --watch

Prints the table as Markdown, and the paths of the files.
"""

T = TypeVar("T")

# Values of flags given without a value, where the value is not ``true``.
_ALONE = {"wandb_workspace": "offline"}


class ReportConfig(Config):
    """Settings of ``rlexp-report``."""

    dirs: Annotated[list[str], Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)] = "report"
    threshold: float | dict[str, float | None] | Literal["registered"] | None = "registered"
    reference: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(default={})
    ignore: list[str] = Field(default=[])
    wandb_workspace: Literal["offline", "online"] | None = None
    watch: bool = False
    interval: Positive = 2.0


def main() -> None:
    """Console entry."""
    run_command("rlexp-report", report, _HELP)


def report(arguments: list[str]) -> int:
    """Report on the runs in some folders.

    Returns:
        The exit code; 130 where Ctrl-C ended ``--watch``.

    Raises:
        ConfigError: the command line is wrong.
        ReportError: there is nothing to report.
    """
    settings = _settings(arguments)
    if settings.watch:
        from rlexp.report.watch import watch

        return watch([Path(path) for path in settings.dirs], settings.interval)

    from rlexp.report import load_runs, make_report, markdown, write_report
    from rlexp.report.output import write_page
    from rlexp.report.run_page import run_page

    page = None
    runs = load_runs(settings.dirs)
    _check_ignored(settings.ignore, [key for run in runs for key in run.settings])
    if len(runs) == 1 and runs[0].path == Path(settings.dirs[0]).resolve():
        page = run_page(runs[0])
        if not runs[0].counted and settings.wandb_workspace is None:
            _refuse_unused(settings)
            print(printable(_written(lambda out: write_page(page, out), settings.out)))
            return Exit.DONE
    reference = {name: (zero, one) for name, (zero, one) in settings.reference.items()}
    made = make_report(runs, settings.threshold, settings.ignore, reference)
    environments = {group.environment for group in made.groups}
    if isinstance(settings.threshold, dict) and (unknown := settings.threshold.keys() - environments):
        message = f"no run has this environment. Available: {', '.join(sorted(environments))}."
        raise ConfigError([Problem(f"threshold.{name}", message) for name in sorted(unknown)])
    for run in made.left_out:
        if run.status == "unreadable":
            print(printable(f"rlexp-report: left out, repair or remove it: {run.problem}"), file=sys.stderr)
    for run in (run for group in made.groups for run in group.runs if run.damage):
        print(printable(f"rlexp-report: averaged, although damaged: {run.damage}"), file=sys.stderr)
    others, save = _workspace(made) if settings.wandb_workspace is not None else ({}, None)
    files = _written(lambda out: write_report(made, out, page, others), settings.out)
    print(markdown(made))
    print("\n".join(printable(file) for file in files))
    if save is not None and settings.wandb_workspace == "online":
        print(f"Saved at {save()}")
    return Exit.DONE


def _refuse_unused(settings: ReportConfig) -> None:
    """Refuse what has no meaning on the page of a run that has not completed."""
    unused = sorted({"threshold", "reference", "ignore"} & settings.model_fields_set)
    if unused:
        message = "has no meaning for a single run that has not completed: its page has no table."
        raise ConfigError([Problem(name, message) for name in unused])


def _check_ignored(ignored: Sequence[str], known: Collection[str]) -> None:
    """Refuse names of settings, or nodes, that neither a run nor the defaults have."""
    defaults = [key for key, _ in flat(load([]).values)] if ignored else []
    nodes = {key.rsplit(".", depth)[0] for key in (*known, *defaults) for depth in range(key.count(".") + 1)}
    if unknown := [name for name in ignored if name not in nodes]:
        hints = {name: did_you_mean(name, [n for n in nodes if n.count(".") <= name.count(".")]) for name in unknown}
        raise ConfigError([Problem("ignore", f"there is no such setting. {h}", name) for name, h in hints.items()])


def _written(write: Callable[[Path], T], out: str) -> T:
    try:
        return write(Path(out))
    except OSError as error:
        raise ConfigError([Problem("out", f"cannot be written to: {error}.", out)]) from error


def _workspace(made: Report) -> tuple[dict[str, str], Callable[[], str]]:
    """The file of a dashboard for the runs, and what saves it in their project."""
    try:
        from rlexp.report import workspace
    except ModuleNotFoundError as error:
        message = "needs wandb-workspaces: pip install 'rlexp[wandb-workspaces]'."
        raise ConfigError([Problem("wandb_workspace", message)]) from error
    dashboard = workspace.workspace(made)
    return {"wandb_workspace.json": workspace.to_json(dashboard)}, lambda: workspace.save(dashboard)


def _settings(arguments: list[str]) -> ReportConfig:
    arguments = [_setting(argument) if argument.startswith("--") else argument for argument in arguments]
    # A multirun's folders may be named after overrides, so the name of a folder may contain an equals sign.
    dirs = [argument for argument in arguments if "=" not in argument or os.path.exists(argument)]  # noqa: PTH110 - of any length
    if not dirs:
        raise ConfigError([Problem("DIR", "is missing; name a run's folder, or one with runs below it.")])
    missing = [Problem(path, "is not a folder; name a run's folder, or one with runs below it.")
               for path in dirs if not Path(path).is_dir()]  # fmt: skip
    pairs = [argument for argument in arguments if argument not in dirs]
    return read_settings(ReportConfig, pairs, missing, paths=("out",), dirs=dirs)


def _setting(flag: str) -> str:
    """A flag as a setting: ``watch=true`` for ``--watch``."""
    name, given, value = flag.removeprefix("--").replace("-", "_", 1).partition("=")
    return f"{name}={value if given else _ALONE.get(name, 'true')}"
