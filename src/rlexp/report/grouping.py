"""Group runs into seeds of one configuration, and name each group."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlexp.config import NO_RESULTS, is_under
from rlexp.report.runs import Run

_UNSET = "unset"
_TRANSFORMS = "env.transforms"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: environment and variant, as far as the groups differ in them; unique.
        environment: the environment that the runs were evaluated in.
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
    for run in sorted((run for run in runs if run.settings), key=lambda run: (run.started, run.path)):
        config = {k: _text(v) for k, v in with_order(run.settings).items() if not is_under(k, ignored)}
        identity = json.dumps(config, sort_keys=True)
        members[identity].append(run)
        configs[identity] = config

    differing = _differing(configs.values())
    env_key = _environment_key(configs.values())
    naming = _naming_keys(configs.values(), differing, env_key)
    environments = {config.get(env_key, _UNSET) for config in configs.values()}
    groups = []
    for identity, config in configs.items():
        environment = config.get(env_key, _UNSET)
        variant = ", ".join(f"{_short(key)}={_shown(key, config)}" for key in naming)
        parts = [f"{env_key}={environment}"] if len(environments) > 1 or not variant else []
        runs_of, left_out = _once_per_seed(members[identity])
        groups.append(
            Group(
                name=", ".join([*parts, variant] if variant else parts),
                environment=environment,
                variant=variant,
                differing={_short(key): _shown(key, config) for key in differing},
                settings={_short(key): with_order(members[identity][0].settings).get(key) for key in naming},
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


def _environment_key(configs: Iterable[Mapping[str, str]]) -> str:
    """``env.name``, unless environments with several ids share a name."""
    ids: dict[str | None, set[str | None]] = defaultdict(set)
    for config in configs:
        ids[config.get("env.name")].add(config.get("env.id"))
    return "env.name" if all(len(found) == 1 for found in ids.values()) else "env.id"


def _naming_keys(configs: Iterable[Mapping[str, str]], differing: Sequence[str], env_key: str) -> list[str]:
    """The fewest keys that a reader needs: without those that follow from the environment or from their node's class.

    Keys that only vary together are all kept, since any of them may have made the difference.
    """
    configs = list(configs)
    classes = [key for key in differing if key.endswith("._target_") or key == _TRANSFORMS]
    kept: list[str] = []
    for key in sorted(differing, key=lambda key: (key not in classes, key)):
        nodes = [k for k in kept if k in classes and key.startswith(f"{_short(k)}.")]
        if key != env_key and not any(_follows(key, from_, configs) for from_ in [env_key, *nodes]):
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


def _shown(key: str, config: Mapping[str, str]) -> str:
    value = config.get(key, _UNSET)
    return value.rpartition(".")[2] if key.endswith("._target_") else value


def _order(value: object) -> tuple[bool, float, str]:
    """A key that sorts numbers by size, before everything else."""
    if isinstance(value, int | float):
        return (False, float(value), "")
    return (True, 0.0, str(value))
