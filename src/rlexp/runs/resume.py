"""Where a run starts: afresh, or from a run's checkpoint with the changes that a resume may make."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rlexp.config import Composed, ConfigError, Problem, flat, is_under, load, read
from rlexp.config.paths import literal
from rlexp.config.redaction import REDACTED, with_secrets
from rlexp.experiment import COMMAND_SETTINGS, ExperimentConfig, check_config, trusted
from rlexp.runs import checkpoint, store
from rlexp.runs.checkpoint import Checkpoint
from rlexp.runs.errors import CheckpointError
from rlexp.runs.links import refuse_links
from rlexp.runs.rundir import MACHINE_SETTINGS, RunDir

# What does not decide what is learned. All else would make another run of it.
_MAY_CHANGE = (
    *MACHINE_SETTINGS,
    "total_frames",
    "loss.teacher",  # its path may change; its weights show whether it is the same teacher
    "checks",
    "logger",
    "evaluation.interval",
    "evaluation.episodes",
    "evaluation.video_interval",
    "checkpoint",
)

_WANDB = "wandb:"


@dataclass(frozen=True)
class Start:
    """A run that is ready to be trained.

    Attributes:
        config: the checked config.
        run: the run's folder, locked if there is a run in it.
        checkpoint: what it resumes from; None starts afresh.
    """

    config: ExperimentConfig
    run: RunDir
    checkpoint: Checkpoint | None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do, its summary included."""
        if self.checkpoint is None or self.checkpoint.state.frames < self.config.total_frames:
            return False
        return self.run.summary.exists() and _read_json(self.run.summary).get("status") == "completed"


def open_run(
    composed: Composed,
    overrides: Sequence[str],
    folder: Path,
    resume: Path | Literal["auto"] | None = None,
    trust: Collection[str] | None = None,
) -> Start:
    """Start a run in a folder, or resume one.

    Args:
        composed: what the command line composed to.
        overrides: the command line's overrides, which are laid over the config that a run was saved with.
        folder: where a new run goes.
        resume: a run's folder or one of its checkpoints; ``auto`` resumes the run in ``folder`` where there is one;
            None starts afresh.
        trust: None where the command line is the user's own; for one that a folder's plan holds, the packages that it
            and the run may import (docs/security.md).

    Raises:
        ConfigError: the config is wrong, or changes what a resumed run cannot change.
        CheckpointError: there is a run, but no checkpoint of it that is whole.
        RunBusyError: another process trains in the folder.
    """
    if resume is None or (resume == "auto" and not RunDir(folder).started):
        refuse_links(RunDir(folder))
        _refuse_others(folder)
        return Start(check_config(composed, trust), RunDir(folder), None)
    path = folder if resume == "auto" else Path(resume)
    if store.is_pointer(path):
        path = store.pointed_to(path)
    if not path.is_dir():
        raise ConfigError([Problem("resume", "there is no such folder.", str(path))])
    if store.is_checkpoint(path) and store.is_superseded(path):
        message = "was set aside when its run was resumed from an earlier checkpoint, and the run's metrics have gone "
        message += f"on without it. It can be evaluated; a new run starts from it with warm_start={path}."
        raise ConfigError([Problem("resume", message, str(path))])
    run = RunDir(path.resolve().parents[1] if store.is_checkpoint(path) else path)
    if not run.started:
        raise CheckpointError(f"{path} is neither a run's folder nor a checkpoint in one. See warm_start for others.")
    refuse_links(run)
    run.lock()
    try:
        start = checkpoint.load(path)
        start.check_size()
        return Start(changed(start.config, composed, overrides, trust), run, start)
    except BaseException:
        run.unlock()
        raise


def open_command(composed: Composed, overrides: Sequence[str]) -> Start:
    """`open_run` as a command line's ``resume`` and ``hydra.run.dir`` say.

    Raises:
        ConfigError, CheckpointError, RunBusyError: as `open_run`.
    """
    resume = composed.values.get("resume")
    named = any(text.lstrip("+").startswith("hydra.run.dir=") for text in overrides)
    if resume == "auto" and not named:
        message = "needs a folder that is the same each time: hydra.run.dir=..."
        raise ConfigError([Problem("resume", message, "auto")])
    folder = Path(composed.run_dir)
    if named and resume not in (None, "auto") and not str(resume).startswith(_WANDB):
        message = "has no meaning with resume=FOLDER, which goes on in that folder. "
        message += f"A run of its own begins with the weights of that one: warm_start={resume}."
        raise ConfigError([Problem("hydra.run.dir", message, composed.run_dir)])
    if str(resume).startswith(_WANDB):
        from rlexp.loggers.wandb_artifact import download_run

        download_run(str(resume).removeprefix(_WANDB), folder)
        return open_run(composed, overrides, folder, folder)
    found = resume if resume in (None, "auto") else Path(str(resume))
    return open_run(composed, overrides, folder, found)


def resume_run(path: Path, overrides: Sequence[str] = ()) -> Start:
    """Resume a run from Python.

    Args:
        path: the run's folder, or one of its checkpoints.
        overrides: what changes.

    Raises:
        ConfigError, CheckpointError, RunBusyError: as `open_run`.
    """
    return open_run(load(overrides), overrides, path, path)


def changed(
    saved: Mapping[str, Any], composed: Composed, overrides: Sequence[str], trust: Collection[str] | None = None
) -> ExperimentConfig:
    """The config of a run with the command line's changes laid over it; ``trust`` as for `open_run`.

    Raises:
        ConfigError: a change is wrong, or would make another run of it; with all of them.
    """
    values = json.loads(json.dumps(saved))
    for path in _paths(overrides):
        _lay(values, composed.values, path)
    problems = []
    before, after = dict(flat(saved)), dict(flat(values))
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new and not _hidden(old) and not is_under(key, _MAY_CHANGE):
            message = f"cannot change when a run is resumed: it was {old}. For a new run, see warm_start."
            problems.append(Problem(key, message, str(new)))
    values, hidden = with_secrets(values, {})
    try:
        own = composed.values if trust is None else None
        packages = trusted(composed) if trust is None else trust
        config = read(ExperimentConfig, values, [*composed.problems, *hidden], trust=packages, own=own)
    except ConfigError as error:
        wrong = {problem.key for problem in error.problems}
        raise ConfigError([*error.problems, *(p for p in problems if p.key not in wrong)]) from None
    if problems:
        raise ConfigError(problems)
    return config


def _hidden(value: object) -> bool:
    return isinstance(value, str) and REDACTED in value


def _refuse_others(folder: Path) -> None:
    """Refuse a folder with files that no run has left, and that a run would replace."""
    known = (folder / ".lock").exists() or (folder.parent / "sweep.json").exists()
    others = [name for name in ("config.yaml", "metadata.json", "summary.json", "git.diff") if (folder / name).exists()]
    if others and not known:
        message = f"has a {others[0]} that no run has left, and this one would replace it: choose another folder."
        raise ConfigError([Problem("hydra.run.dir", message, str(folder))])


def _paths(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The settings that overrides name, as paths; the empty path is the whole config, which presets write to."""
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(literal(text))
        except HydraException:  # it is among the problems of what was composed
            continue
        key = override.key_or_group.split("@")[0].replace("/", ".")
        if key == "experiment":
            yield []
        elif key.split(".")[0] not in ("hydra", *COMMAND_SETTINGS):
            yield key.split(".")


def _lay(values: dict[str, Any], over: Mapping[str, Any], path: Sequence[str]) -> None:
    if not path:
        values |= {key: value for key, value in over.items() if key not in COMMAND_SETTINGS}
        return
    name, *rest = path
    if name not in over:
        values.pop(name, None)
    elif rest and isinstance(values.get(name), dict) and isinstance(over[name], Mapping):
        _lay(values[name], over[name], rest)
    else:
        values[name] = over[name]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r:.200}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: it holds no mapping.")
    return values
