"""``rlexp-search``: search for settings, scored by the mean over several seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

import yaml
from hydra._internal.utils import get_args_parser

from rlexp.cli.common import Exit, import_from_here, report_error, run_command
from rlexp.config import ConfigError, Problem, Sources, load, new_run_path
from rlexp.config.paths import unquoted
from rlexp.config.redaction import redact
from rlexp.experiment import check_config
from rlexp.search import read_search
from rlexp.search.folder import SearchDir, SearchPlan, best_of

_HELP = """\
rlexp-search: search for settings, scored by the mean over several seeds.

usage: rlexp-search [search=ppo] [search.key=value ...] [group=option ...] [key=value ...] [dir=DIR]
       rlexp-search resume=DIR [search.trials=N]

  search          the search space, an option of the group search (rlexp-config copy search/ppo gives one to edit)
  search.trials   number of trials; search.seeds: trainings per trial; search.space...: the range of a setting
  key=value       settings of all trainings, as after rlexp-train
  dir             folder of the search; default: a new one under outputs/search
  resume          resume a search; more trials extend it. Several processes may work on one search in parallel.

examples:
  rlexp-search env=hopper total_frames=500_000 search.trials=60 search.seeds=5
  rlexp-search search.space.optim.lr.high=1e-2 '~search.space.loss.gamma'

A trial's score is the mean over seeds of the final evaluation's mean return. Needs pip install 'rlexp[search]'.
"""


def main() -> None:
    """Console entry."""
    run_command("rlexp-search", search)


def search(arguments: list[str]) -> int:
    """Check the search, run or resume it, and print its result.

    Returns:
        The exit code; 1 if no trial was completed.

    Raises:
        ConfigError: the command line, the search or the experiment is wrong.
    """
    flags = get_args_parser().parse_intermixed_args(arguments)
    if flags.help:
        print(_HELP)
        return Exit.DONE
    if find_spec("optuna") is None:
        raise ConfigError([Problem("rlexp-search", "needs Optuna: pip install 'rlexp[search]'.")])
    folder, plan = _begun(flags.overrides, flags.config_dir)

    from rlexp.runs.errors import CheckpointError
    from rlexp.runs.session import console_logging
    from rlexp.runs.stops import Stopped
    from rlexp.search.study import search

    with console_logging():
        try:
            study = search(folder, plan)
        except CheckpointError as error:
            return report_error("rlexp-search", error)
        except Stopped as stopped:
            options = f"--config-dir {quote(plan.config_dir)} " if plan.config_dir else ""
            print(f"{stopped}; resume the search with: rlexp-search {options}resume={folder.path}")
            return stopped.exit_code
    best = best_of(study)
    if best is None:
        print(f"rlexp-search: no trial was completed; see {folder.trials}", file=sys.stderr)
        return Exit.FAILED
    fresh, preset = folder.commands(plan, best)
    seeds = plan.settings.seeds
    print(f"{len(study.trials)} trials: {folder.trials}")
    print(f"Best: trial {best.number}, with a mean final evaluation of {best.value:,.1f} over {seeds} seeds.")
    print(f"As a preset: {preset}")
    print(f"The best of many scores is biased upwards; an unbiased estimate, with fresh seeds:\n  {fresh}")
    return Exit.DONE


def _begun(arguments: Sequence[str], config_dir: str | None) -> tuple[SearchDir, SearchPlan]:
    """The folder and the plan of a new or a resumed search, both checked."""
    pairs = [text.partition("=") for text in arguments]
    named = {key: unquoted(value) for key, _, value in pairs if key in ("resume", "dir")}
    overrides = [text for text in arguments if text.partition("=")[0] not in named]
    if "resume" in named:
        folder = SearchDir(Path(named["resume"]))
        return folder, _plan_of(folder, overrides, config_dir)
    import_from_here()
    folder = SearchDir(Path(named["dir"]) if "dir" in named else new_run_path("search"))
    if folder.plan.exists():
        raise ConfigError([Problem("dir", f"has a search already: resume={named['dir']} resumes it.", named["dir"])])
    _refuse_what_the_search_sets(overrides)
    secrets = [text.partition("=")[0] for text in overrides if redact(text) != text]
    if secrets:
        message = "is a secret, and a search saves its command line: name a variable, '{0}=${{oc.env:MY_KEY}}'."
        raise ConfigError([Problem(key, message.format(key)) for key in secrets])
    config_dir = None if config_dir is None else str(Path(config_dir).resolve())
    of_search = [text for text in overrides if _is_of_search(text)]
    common = [text for text in overrides if not _is_of_search(text)]
    if not any(text.startswith("search=") for text in of_search):
        of_search.insert(0, "search=ppo")
    composed = load([*(f"+{t}" if t.startswith("search=") else t for t in of_search), *common], Sources(config_dir))
    values = composed.values.pop("search", None)
    experiment = check_config(composed).to_dict()
    plan = SearchPlan(common, read_search(values or {}, experiment), config_dir)
    folder.write_plan(common, config_dir, values)
    return folder, plan


def _plan_of(folder: SearchDir, overrides: Sequence[str], config_dir: str | None) -> SearchPlan:
    """The plan of an earlier search, with the number of trials that this command line asks for.

    It may have come from anyone: what it builds must be listed or trusted, and its folder of options named again.
    """
    if not folder.plan.exists():
        raise ConfigError([Problem("resume", "there is no search in this folder.", str(folder.path))])
    trusting = [text for text in overrides if text.startswith("trust=")]
    trust = [str(package) for package in load(trusting).values.get("trust") or []] if trusting else []
    if trust:
        import_from_here()
    overrides = [text for text in overrides if text not in trusting]
    others = [text for text in overrides if not text.startswith("search.trials=")]
    if others:
        message = "cannot change when a search is resumed: its trials would not be comparable. Start a new search."
        raise ConfigError([Problem(text, message) for text in others])
    try:
        saved = folder.read_plan()
        values, common, options = dict(saved["search"]), list(saved["overrides"]), saved["config_dir"]
        if not all(isinstance(text, str) for text in common):
            raise TypeError("an override is no text")
    except (Exception, RecursionError) as error:  # whatever a damaged or hostile file leads to
        raise ConfigError([Problem("resume", f"search.yaml is damaged: {error!r:.200}", str(folder.path))]) from error
    if options is not None and options != (config_dir and str(Path(config_dir).resolve())):
        message = "is the search's folder of options, which its plan may not choose: if it is yours, say it again."
        raise ConfigError([Problem(f"--config-dir {options}", message)])
    if found := [text for text in common if text.lstrip("+~").startswith("hydra")]:
        raise ConfigError([Problem(text, "is a setting of Hydra, which a plan may not decide.") for text in found])
    if overrides:
        values["trials"] = yaml.safe_load(overrides[-1].partition("=")[2])
    experiment = check_config(load(common, Sources(options)), trust).to_dict()
    return SearchPlan(common, read_search(values, experiment, trust), options)


def _refuse_what_the_search_sets(overrides: Sequence[str]) -> None:
    messages = {
        "seed": "each trial has seeds 0, 1, ...: search.seeds=N.",
        "hydra": "each run has a folder below dir=DIR.",
    }
    keys = [text.partition("=")[0] for text in overrides]
    found = [Problem(key, f"is set by the search: {messages[key.split('.')[0]]}")
             for key in keys if key.split(".")[0] in messages]  # fmt: skip
    if found:
        raise ConfigError(found)


def _is_of_search(text: str) -> bool:
    key = text.partition("=")[0].lstrip("+~")
    return key == "search" or key.startswith("search.")
