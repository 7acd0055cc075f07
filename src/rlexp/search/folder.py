"""The folder of a search: its plan, its study, the runs of its trials and its results."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlexp.config import Composed, Sources, load
from rlexp.config.paths import quoted
from rlexp.files import alone, read_yaml, write_text
from rlexp.runs.rundir import RunDir
from rlexp.search.config import SearchConfig, TaskConfig
from rlexp.sweeps.folder import DamagedSummaryError, read_summary
from rlexp.text import csv_cell

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


_WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_NO_TEXT = ("true", "false", "null", "nan", "inf")
# Settings that a search has gained, with the values that mean what earlier versions did.
_EARLIER = {"first_seed": 0, "confirm": 0, "confirm_seeds": 5, "workers": 1, "tasks": {}}


@dataclass(frozen=True)
class SearchPlan:
    """A search over an experiment.

    Attributes:
        overrides: the overrides that all trials share, as after ``rlexp-train``.
        settings: the settings of the search.
        config_dir: a folder of the user's own options.
        command: the command line that the search was started with.
        trust: None where all this is the user's own; else the packages that it may import (docs/security.md).
    """

    overrides: Sequence[str]
    settings: SearchConfig
    config_dir: str | None
    command: Sequence[str] = ()
    trust: Sequence[str] | None = None

    def of_run(self, params: Mapping[str, Any], task: TaskConfig, seed: int) -> list[str]:
        """The overrides of one run."""
        return [*self.overrides, *task.overrides, *overrides_of(params), f"seed={seed}"]

    def load(self, overrides: Sequence[str]) -> Composed:
        """Compose a config as the search does."""
        return load(overrides, Sources(self.config_dir))


class SearchDir:
    """The layout of a search's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.plan = self.path / "search.yaml"
        self.journal = self.path / "study.log"
        self.database = self.path / "study.db"  # of a search that was started before there was a journal
        self.trials = self.path / "trials.csv"
        self.plots = self.path / "plots"
        self.best = self.path / "conf" / "experiment" / "best.yaml"
        self.protocol = self.best.with_suffix(".md")

    def trial(self, number: int) -> RunDir:
        """A trial's folder, which the process that runs the trial holds locked."""
        return RunDir(self.path / "trials" / f"{number:03d}")

    def run(self, number: int, task: str, seed: int) -> Path:
        """The folder of one of a trial's runs."""
        return self.trial(number).path / task / f"seed_{seed}"

    def confirmation(self, number: int, task: str, seed: int) -> Path:
        """The folder of one of a trial's runs on fresh seeds."""
        return self.path / "confirmation" / f"{number:03d}" / task / f"seed_{seed}"

    def alone(self) -> AbstractContextManager[None]:
        """A lock that one process at a time holds, to claim a trial or to write results."""
        return alone(self.path / ".alone.lock")

    def write_plan(self, plan: SearchPlan, search: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> None:
        """Save what a resume needs.

        Args:
            plan: the search.
            search: its settings as they were given.
            configs: each task's resolved config, secrets left out.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        values = {
            "command": list(plan.command),
            "overrides": list(plan.overrides),
            "config_dir": plan.config_dir,
            "search": dict(search),
            "configs": list(configs),
        }
        write_text(self.plan, yaml.safe_dump(values, sort_keys=False))

    def read_plan(self) -> dict[str, Any]:
        """What `write_plan` saved."""
        values: dict[str, Any] = read_yaml(self.plan)
        return values | {"search": _EARLIER | values["search"]}

    def write_results(self, study: Study, plan: SearchPlan) -> None:
        """Rewrite ``trials.csv`` and the best trial's preset from the study; several processes may do so at once.

        Args:
            study: the study.
            plan: what is searched; where it confirms trials, the one with the highest score is not yet the winner.
        """
        with self.alone():
            self._write_trials(study)
            if not plan.settings.confirm and (best := best_of(study)) is not None:
                self._write_best(plan, best, "")

    def write_winner(self, plan: SearchPlan, winner: FrozenTrial, protocol: str) -> None:
        """Write the winner's preset and, beside it, how it was found."""
        with self.alone():
            self._write_best(plan, winner, f" {self.protocol.name} says how it was found.")
            write_text(self.protocol, protocol)

    def _write_trials(self, study: Study) -> None:
        """Number, state, score and settings of every trial."""
        text = io.StringIO()
        trials = study.trials
        keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(map(csv_cell, ["trial", "state", "score", *keys, "error"]))
        for trial in trials:
            # Optuna takes a pruned trial's last evaluation as its value, which is not a score.
            score = trial.value if state_of(trial) == "completed" else None
            settings = [trial.params.get(key) for key in keys]
            row = [trial.number, state_of(trial), score, *settings, trial.user_attrs.get("error")]
            rows.writerow(map(csv_cell, row))
        write_text(self.trials, text.getvalue())

    def _write_best(self, plan: SearchPlan, best: FrozenTrial, note: str) -> None:
        """Write a trial's settings as a preset, on top of the one that the search was started with."""
        from rlexp.report.tables import number

        base, _ = _preset(plan.overrides)
        values: dict[str, Any] = {} if base is None else {"defaults": [base, "_self_"]}
        for key, value in best.params.items():
            *nodes, name = key.split(".")
            node = values
            for part in nodes:
                node = node.setdefault(part, {})
            node[name] = _decoded(value)
        self.best.parent.mkdir(parents=True, exist_ok=True)
        comment = f"Trial {best.number} of a search, with a score of {number(best.value)}.{note}"
        write_text(self.best, f"# @package _global_\n# {comment}\n{yaml.safe_dump(values, sort_keys=False)}")

    def commands(self, plan: SearchPlan, best: FrozenTrial) -> tuple[list[str], list[str]]:
        """The commands that run the best settings on each task: with seeds of no run so far, and as a preset."""
        first = 0 if plan.settings.first_seed >= 10 else plan.settings.fresh_seeds.stop

        def left(overrides: Sequence[str]) -> list[str]:
            # An override on the command line would take precedence over the preset.
            return [text for text in overrides if text.partition("=")[0].lstrip("+") not in best.params]

        common = left(plan.overrides)
        own_of = {name: left(task.overrides) for name, task in plan.settings.scored_on.items()}
        own = [] if plan.config_dir is None else ["--config-dir", plan.config_dir]
        found = [*overrides_of(best.params), f"seed=range({first},{first + 10})"]
        fresh = [
            shlex.join(["rlexp-train", "--multirun", *own, *common, *overrides, *found])
            for overrides in own_of.values()
        ]
        if plan.config_dir is not None:
            # Under a name of its own: the search may have begun with an earlier one's winner.
            names = (f"best{'' if number == 1 else f'_{number}'}.yaml" for number in count(1))
            unused = next(path for name in names if not (path := Path(plan.config_dir, "experiment", name)).exists())
            return fresh, [f"copy {self.best} to {unused}"]
        conf = str(self.best.parents[1])
        presets = []
        for overrides in own_of.values():
            _, given = _preset(common)
            if any(text.lstrip("+").startswith("experiment=") for text in overrides):
                # A task that is a preset itself leaves no place for another.
                command = ["rlexp-train", *own, *common, *overrides, *overrides_of(best.params)]
            else:
                command = ["rlexp-train", "--config-dir", conf, *given, *overrides, "experiment=best"]
            presets.append(shlex.join(command))
        return fresh, presets


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """A trial's settings as they are written on the command line."""
    return [f"{key}={_written(_decoded(value))}" for key, value in params.items()]


def _decoded(value: Any) -> Any:
    """A value that a study has stored: lists and mappings are JSON there."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _written(value: Any) -> str:
    """A value in Hydra's grammar, whose mappings have keys without quotes."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_written(below)}' for key, below in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and value.lower() not in _NO_TEXT else quoted(value)
    return json.dumps(value)


def _preset(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The option of ``experiment`` among overrides, and the others."""
    found = [text for text in overrides if text.lstrip("+").startswith("experiment=")]
    return (found[-1].partition("=")[2] if found else None), [text for text in overrides if text not in found]


def final_return(run: RunDir) -> float:
    """The mean return of a complete run's final evaluation."""
    final = read_summary(run).get("final")
    if final is None:
        if not run.summary.exists():  # a trial chosen since by another process, say, whose runs it has not made
            raise DamagedSummaryError(f"{run.path} has no run that is complete: resume the search.")
        raise DamagedSummaryError(f"{run.summary} has no final evaluation, although its run is complete: remove it.")
    return float(final["eval/return"])


def best_of(study: Study) -> FrozenTrial | None:
    """The trial with the highest score; None where none was completed."""
    return study.best_trial if any(state_of(trial) == "completed" for trial in study.trials) else None


def state_of(trial: FrozenTrial) -> str:
    """The state of a trial: ``completed``, ``pruned``, ``failed``, or ``running``, also where it was interrupted."""
    name: str = trial.state.name.lower()
    return {"complete": "completed", "fail": "failed"}.get(name, name)
