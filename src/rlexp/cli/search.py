"""``rlexp-search``: search for settings, scored over several seeds, and over several tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import join
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser

from rlexp.cli.common import Exit, import_from_here, refuse_learners, run_command, split_trust
from rlexp.config import NO_RESULTS, ConfigError, Problem, Sources, flat, is_under, load, new_run_path
from rlexp.config.legacy import current_config
from rlexp.config.paths import unquoted
from rlexp.config.redaction import redact
from rlexp.config.trust import RESOLVED, calls_a_resolver
from rlexp.experiment import check_config, trust_argument, trusting
from rlexp.runs.links import refuse_linked_runs
from rlexp.search import read_search
from rlexp.search.folder import SearchDir, SearchPlan
from rlexp.text import printable

_HELP = """\
rlexp-search: hyperparameter search, scored over several seeds and, if you like, several tasks.

usage: rlexp-search [search=ppo] [search.key=value ...] [group=option ...] [key=value ...] [dir=DIR]
       rlexp-search resume=DIR [search.trials=N] [search.workers=N]

  search          the search space, an option of the group search (rlexp-config copy search/ppo gives one to edit)
  search.trials   number of trials; search.seeds: seeds per trial; search.space...: the range of a setting
  search.confirm  number of the best trials that are trained again on search.confirm_seeds fresh seeds
  search.tasks    several tasks, each with its scale (docs/search.md)
  search.workers  runs in parallel
  key=value       settings of all trainings, as after rlexp-train
  dir             folder of the search; default: a new one under outputs/search
  resume          resume a search; more trials extend it. Several processes may work on one search in parallel.
  trust           packages that a search from someone else may import, e.g. resume=DIR trust=[my_lab]
  --config-dir    a folder of your own options; given again to resume

examples:
  rlexp-search env=hopper total_frames=500_000 search.trials=60 search.workers=2
  rlexp-search search.space.optim.lr.high=1e-2 '~search.space.loss.gamma'

A trial's score is the mean over seeds of the final evaluation's mean return; the winner is the best of search.confirm
trials on fresh seeds. Needs pip install 'rlexp[search]'.
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
    refuse_learners("rlexp-search")
    flags = get_args_parser().parse_intermixed_args(arguments)
    if flags.help:
        print(_HELP)
        return Exit.DONE
    others = ("config_path", "config_name", "cfg", "package", "info", "multirun", "resolve", "hydra_help")
    if unused := [name for name in others if getattr(flags, name, None)]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError([Problem(names, "has no meaning here; --config-dir names a folder of your own options.")])
    if find_spec("optuna") is None:
        raise ConfigError([Problem("rlexp-search", "needs Optuna: pip install 'rlexp[search]'.")])
    folder, plan = _begun(flags.overrides, flags.config_dir)

    from rlexp.report.tables import interval, number
    from rlexp.runs.session import console_logging
    from rlexp.runs.stops import Stopped
    from rlexp.search.run import search

    with console_logging():
        try:
            found = search(folder, plan)
        except Stopped as stopped:
            print(f"{stopped}; resume the search with: {_again(folder, plan)}")
            return stopped.exit_code
    if found.winner is None:
        missing = "none of the best trials could be confirmed" if found.confirmed else "no trial was completed"
        print(f"rlexp-search: {missing}; see {folder.trials}", file=sys.stderr)
        return Exit.FAILED
    fresh, presets = folder.commands(plan, found.winner)
    print(printable(f"{len(found.study.trials)} trials: {folder.trials}"))
    print(f"Winner: trial {found.winner.number}, with a score of {number(found.winner.value)} in its trial", end="")
    if found.confirmed and found.confirmed[0].score is not None:
        print(f" and {interval(found.confirmed[0].score, plan.settings.confirm_seeds)} on fresh seeds", end="")
    print(printable(f". How it was found: {folder.protocol}"))
    for command in presets:
        print(f"As a preset: {printable(command)}")
    print("The best of several scores is biased upwards; an unbiased estimate, with further seeds:")
    print("\n".join(f"  {printable(command)}" for command in fresh))
    return Exit.DONE


def _again(folder: SearchDir, plan: SearchPlan) -> str:
    """The command that resumes a search: it says again what the plan in the folder may not decide."""
    options = ["--config-dir", plan.config_dir] if plan.config_dir else []
    if plan.trust is None:
        tasks = [plan.load([*plan.overrides, *task.overrides]) for task in plan.settings.scored_on.values()]
        choices = [json.dumps(candidates.stored) for candidates in plan.settings.space.values()]
        texts = [*choices, *(text for task in tasks for text in task.overrides)]
        trusted = trust_argument({"tasks": [task.values for task in tasks]}, texts)
    else:
        trusted = trusting(plan.trust)
    return printable(join(["rlexp-search", *options, f"resume={folder.path}", *trusted]))


def _begun(arguments: Sequence[str], config_dir: str | None) -> tuple[SearchDir, SearchPlan]:
    """The folder and the plan of a new or a resumed search, both checked."""
    pairs = [text.partition("=") for text in arguments]
    named = {key: unquoted(value) for key, _, value in pairs if key in ("resume", "dir")}
    overrides = [text for text in arguments if text.partition("=")[0] not in named]
    if named.keys() == {"resume", "dir"}:
        message = "has no meaning with resume, which goes on in that search's folder."
        raise ConfigError([Problem("dir", message, named["dir"])])
    if "resume" in named:
        folder = SearchDir(Path(named["resume"]))
        return folder, _plan_of(folder, overrides, config_dir)
    import_from_here()
    folder = SearchDir(Path(named["dir"]) if "dir" in named else new_run_path("search"))
    if folder.plan.exists():
        raise ConfigError([Problem("dir", f"has a search already: resume={named['dir']} resumes it.", named["dir"])])
    _refuse_what_the_search_sets(overrides)
    config_dir = None if config_dir is None else str(Path(config_dir).resolve())
    of_search = [text for text in overrides if _is_of_search(text)]
    common = [text for text in overrides if not _is_of_search(text)]
    if not any(text.startswith("search=") for text in of_search):
        of_search.insert(0, "search=ppo")
    composed = load([*(f"+{t}" if t.startswith("search=") else t for t in of_search), *common], Sources(config_dir))
    values = composed.values.pop("search", None) or {}

    configs: list[Mapping[str, Any]] = []

    def experiment(task: Sequence[str]) -> dict[str, Any]:
        _refuse_what_the_search_sets(task)
        found = check_config(load([*common, *task], Sources(config_dir)) if task else composed).to_dict()
        configs.append(redact(found))
        return found

    command = [*([] if config_dir is None else ["--config-dir", config_dir]), *arguments]
    plan = SearchPlan(common, read_search(values, experiment), config_dir, command)
    folder.write_plan(plan, values, configs)
    return folder, plan


def _plan_of(folder: SearchDir, overrides: Sequence[str], config_dir: str | None) -> SearchPlan:
    """The plan of an earlier search, with the trials and workers that this command line asks for.

    It may have come from anyone: what it builds must be listed or trusted, and its folder of options named again.
    """
    if not folder.plan.exists():
        raise ConfigError([Problem("resume", "there is no search in this folder.", str(folder.path))])
    refuse_linked_runs(folder.path, 4)  # trials/NNN/TASK/seed_K
    trust, overrides = split_trust(overrides)
    if trust:
        import_from_here()
    others = [text for text in overrides if not text.startswith(("search.trials=", "search.workers="))]
    if others:
        message = "cannot change when a search is resumed: its trials would not be comparable. Start a new search."
        raise ConfigError([Problem(text, message) for text in others])
    try:
        saved = folder.read_plan()
        values, common, options = dict(saved["search"]), list(saved["overrides"]), saved["config_dir"]
        command = list(saved.get("command", []))
        before = [current_config(config) for config in saved.get("configs", ())]
        if not all(isinstance(text, str) for text in [*common, *command]):
            raise TypeError("an override is no text")
    except (Exception, RecursionError) as error:  # whatever a damaged or hostile file leads to
        raise ConfigError([Problem("resume", f"search.yaml is damaged: {error!r:.200}", str(folder.path))]) from error
    if options is not None and config_dir is None:
        message = "has options, which are not taken from a resumed folder: if it is yours, give it again."
        raise ConfigError([Problem(f"--config-dir {options}", message)])
    if options is None and config_dir is not None:
        raise ConfigError([Problem(f"--config-dir {config_dir}", "is none that the search was started with.")])
    options = config_dir and str(Path(config_dir).resolve())  # the user's own word, wherever it was before
    for text in overrides:
        key, _, value = text.partition("=")
        values[key.removeprefix("search.")] = _number(text, value)

    configs: list[Mapping[str, Any]] = []

    def experiment(task: Sequence[str]) -> dict[str, Any]:
        texts = [*common, *task]
        found = [Problem(text, RESOLVED) for text in texts if calls_a_resolver(text) and "hydra" not in trust]
        hydra = [text for text in texts if text.lstrip("+~").startswith("hydra")]
        found += [Problem(text, "is a setting of Hydra, which is not taken from a resumed folder.") for text in hydra]
        if found:
            raise ConfigError(found)
        composed = check_config(load(texts, Sources(options)), trust).to_dict()
        configs.append(redact(composed))
        return composed

    plan = SearchPlan(common, read_search(values, experiment, trust), options, command, trust)
    _check_unchanged(before, configs)
    with folder.alone():  # for the command that resumes it next, and for other machines that take part
        folder.write_plan(plan, values, configs)
    return plan


def _check_unchanged(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on with other settings: a preset, or an option of the user's own, may have been edited."""
    problems = []
    for ours, theirs in zip(now, before, strict=False):
        new, old = ({k: v for k, v in flat(config) if not is_under(k, NO_RESULTS)} for config in (ours, theirs))
        for key in sorted(new.keys() | old.keys()):
            if new.get(key) != old.get(key):
                message = f"has changed since the search was started: it was {old.get(key)!r:.80}. Start a new search."
                problems.append(Problem(key, message, f"{new.get(key)!r:.80}"))
    if problems:
        raise ConfigError(problems)


def _number(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError([Problem(text, "cannot be read as a number.")]) from error


def _refuse_what_the_search_sets(overrides: Sequence[str]) -> None:
    messages = {
        "seed": "its runs have the seeds from search.first_seed on: search.seeds=N.",
        "hydra": "each run has a folder below dir=DIR.",
    }
    keys = [text.partition("=")[0].lstrip("+~") for text in overrides]
    found = [Problem(key, f"is set by the search: {messages[key.split('.')[0]]}")
             for key in keys if key.split(".")[0] in messages]  # fmt: skip
    secret = "is a secret, and a search saves its command line: name a variable, '{0}=${{oc.env:MY_KEY}}'."
    found += [
        Problem(key, secret.format(key)) for key, text in zip(keys, overrides, strict=True) if redact(text) != text
    ]
    if found:
        raise ConfigError(found)


def _is_of_search(text: str) -> bool:
    key = text.partition("=")[0].lstrip("+~")
    return key == "search" or key.startswith("search.")
