"""Group runs into seeds of one configuration, and name each group."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlexp.config import NO_RESULTS, is_under
from rlexp.report.runs import FAILED, KILLED, SEARCH, STOPPED, UNFINISHED, UNREADABLE, Run

_UNSET = "unset"
_TRANSFORMS = "env.transforms"
_ENVIRONMENT = "env.name"
# How runs end without a result and do not go on by themselves.
_INCOMPLETE = (STOPPED, FAILED, KILLED, UNFINISHED, UNREADABLE)
# What distinguishes environments that share a name; further settings of an environment are variants of it.
_TASK = ("env.id", "env.domain", "env.game", "env.task", "env.task._target_")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: environment and variant, as far as the groups differ in them; unique.
        environment: the environment that the runs were evaluated in: ``env.name``, with what tells environments
            of the report apart that share it.
        variant: the other settings that separate the groups, ``key=value, ...``; empty where none do. Groups of
            several environments with the same variant are the same method.
        differing: every setting that is not the same in all groups, as text, including those that follow from the
            environment or from a ``_target_`` and are not in the name.
        settings: the settings that the variant names, key to value.
        runs: the runs whose numbers count, in order of seeds, each seed once.
        left_out: the runs whose numbers do not count; their status says why.
    """

    name: str
    environment: str
    variant: str
    differing: Mapping[str, str]
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]
    left_out: tuple[Run, ...]

    @property
    def incomplete(self) -> int:
        """Seeds without a result, because their runs were stopped or killed, have failed or cannot be read."""
        left_out = {run.seed for run in self.left_out if run.status in _INCOMPLETE}
        return len(left_out - {run.seed for run in self.runs})


def group_runs(runs: Iterable[Run], ignore: Sequence[str] = ()) -> list[Group]:
    """Group runs by their settings, without the seed and others that do not separate groups.

    The result does not depend on the order of ``runs``.

    Args:
        runs: from `load_runs`; those whose config could not be read belong to no group.
        ignore: further settings, or whole nodes such as ``evaluation``, that do not separate groups.

    Returns:
        The groups, in order of environment and variant.
    """
    ignored = (*NO_RESULTS, *ignore)
    members: dict[str, list[Run]] = defaultdict(list)
    configs: dict[str, dict[str, str]] = {}
    tasks: dict[str, dict[str, str]] = {}
    for run in sorted((run for run in runs if run.settings), key=lambda run: (run.started, run.path)):
        compared = {k: v for k, v in with_order(run.settings).items() if not is_under(k, ignored)}
        config = {k: _text(v) for k, v in compared.items()}
        identity = json.dumps(config, sort_keys=True)
        members[identity].append(run)
        configs[identity] = config
        tasks[identity] = {k: config[k] for k, v in compared.items() if _is_task(k, v)}

    clashing = _clashing(configs.values())
    for identity, config in configs.items():
        tasks[identity] = {key: _shown(key, config, clashing) for key in tasks[identity]}
    for identity, name in _environment_names(configs, tasks).items():
        configs[identity][_ENVIRONMENT] = name
    differing = _differing(configs.values())
    naming = _naming_keys(configs.values(), differing)
    environments = {config[_ENVIRONMENT] for config in configs.values()}
    groups = []
    for identity, config in configs.items():
        environment = config[_ENVIRONMENT]
        variant = ", ".join(f"{_short(key)}={_shown(key, config, clashing)}" for key in naming)
        parts = [f"{_ENVIRONMENT}={environment}"] if len(environments) > 1 or not variant else []
        runs_of, left_out = _once_per_seed(members[identity])
        groups.append(
            Group(
                name=", ".join([*parts, variant] if variant else parts),
                environment=environment,
                variant=variant,
                differing={_short(key): _shown(key, config, clashing) for key in differing},
                settings={_short(key): _setting(key, members[identity][0], clashing) for key in naming},
                runs=runs_of,
                left_out=left_out,
            )
        )
    return sorted(groups, key=lambda g: (g.environment, [_order(v) for v in g.settings.values()], g.name))


def with_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the names of the transforms in their order, since the order changes their effect."""
    names = dict.fromkeys(key.split(".")[2] for key in settings if key.startswith(f"{_TRANSFORMS}."))
    return dict(settings) | ({_TRANSFORMS: list(names)} if names else {})


def _once_per_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The later of two runs with the same seed counts: an interval must not take them for two samples."""
    latest = {run.seed: run for run in runs if run.counted}
    counted = sorted(latest.values(), key=lambda run: _order(run.seed))
    left_out = []
    for run in runs:
        if not run.counted:
            left_out.append(run)
        elif (later := latest[run.seed]) is not run:
            left_out.append(replace(run, status="superseded", problem=f"{later.path.name} has the same seed"))
    return tuple(counted), tuple(left_out)


def _differing(configs: Iterable[Mapping[str, str]]) -> list[str]:
    configs = list(configs)
    return sorted(key for key in set().union(*configs) if len({config.get(key) for config in configs}) > 1)


def _is_task(key: str, value: object) -> bool:
    """Whether a setting says which environment it is, and not how it is set."""
    return key in _TASK or (key.startswith("env.make.") and isinstance(value, str))


def _environment_names(
    configs: Mapping[str, Mapping[str, str]], tasks: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The name of each config's environment: ``env.name``, with what tells those apart that share it."""
    names = {identity: config.get(_ENVIRONMENT, _UNSET) for identity, config in configs.items()}
    of_name: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for identity, name in names.items():
        of_name[name].append(tasks[identity])
    return {
        identity: ":".join([name, *(tasks[identity].get(key, _UNSET) for key in _differing(of_name[name]))])
        for identity, name in names.items()
    }


def _naming_keys(configs: Iterable[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """The fewest keys that a reader needs: without those that follow from the environment or from their node's class.

    Keys that only vary together are all kept, since any of them may have made the difference. So is `SEARCH`, since
    what was chosen by its score in one environment is not the same method as what was tested in another.
    """
    configs = list(configs)
    classes = [key for key in differing if key.endswith("._target_") or key == _TRANSFORMS]
    kept: list[str] = []
    for key in sorted(differing, key=lambda key: (key not in classes, key)):
        nodes = [k for k in kept if k in classes and key.startswith(f"{_short(k)}.")]
        follows = any(_follows(key, from_, configs) for from_ in [_ENVIRONMENT, *nodes])
        if key == SEARCH or (key != _ENVIRONMENT and not follows):
            kept.append(key)
    return sorted(kept)


def _follows(key: str, from_: str, configs: Sequence[Mapping[str, str]]) -> bool:
    """Whether the value of one key determines that of the other, in all configs."""
    values: dict[str | None, set[str | None]] = defaultdict(set)
    for config in configs:
        values[config.get(from_)].add(config.get(key))
    return all(len(found) == 1 for found in values.values())


def _text(value: object) -> str:
    """A setting as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _short(key: str) -> str:
    return key.removesuffix("._target_")


def _clashing(configs: Iterable[Mapping[str, str]]) -> set[str]:
    """The settings that name classes of which two, of different modules, have the same name."""
    named: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            if key.endswith("._target_"):
                named[key].add(value)
    return {key for key, paths in named.items() if len({path.rpartition(".")[2] for path in paths}) < len(paths)}


def _shown(key: str, config: Mapping[str, str], clashing: Collection[str]) -> str:
    """A setting as text; a class without its module, if its name alone tells it apart."""
    value = config.get(key, _UNSET)
    return value.rpartition(".")[2] if key.endswith("._target_") and key not in clashing else value


def _setting(key: str, run: Run, clashing: Collection[str]) -> Any:
    """A setting as a number or text; a class as `_shown`."""
    value = with_order(run.settings).get(key)
    if not isinstance(value, str) or not key.endswith("._target_") or key in clashing:
        return value
    return value.rpartition(".")[2]


def _order(value: object) -> tuple[bool, float, str]:
    """A key that sorts numbers by size, before everything else."""
    if isinstance(value, int | float):
        return (False, float(value), "")
    return (True, 0.0, str(value))
