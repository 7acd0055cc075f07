"""The groups of options, and an option's file to copy."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.core.object_type import ObjectType

from rlexp.config.problems import ConfigError, Problem, did_you_mean
from rlexp.config.sources import SHIPPED, Sources, advertised, conf_dir, hydra_session, names
from rlexp.config.spec import TARGET

# An entry of a defaults list that is no option but what several options share.
_BASE = re.compile(r"^  - /?(base_\w+)(?:@_here_)?\n", re.MULTILINE)


def groups(sources: Sources = SHIPPED) -> dict[str, dict[str, str]]:
    """Every group of options, and the first line of each option's description."""
    found: dict[str, dict[str, str]] = {}
    with hydra_session(sources):
        pending = [name for name in names("", ObjectType.GROUP) if name != "hydra"]
        while pending:
            group = pending.pop(0)
            options = names(group, ObjectType.CONFIG)
            if options:
                found[group] = {name: _description(option_file(f"{group}/{name}", sources)) for name in options}
            pending += [f"{group}/{name}" for name in names(group, ObjectType.GROUP)]
    return dict(sorted(found.items()))


def option_file(option: str, sources: Sources = SHIPPED) -> Path:
    """The file of ``group/option``, or of a base such as ``base_loss``; the user's own before a shipped one.

    Raises:
        ConfigError: there is no such option.
    """
    folders = [Path(folder) for folder in (sources.config_dir, sources.config_path) if folder]
    for folder in [*folders, conf_dir(), *advertised().values()]:
        if (path := folder / f"{option}.yaml").is_file():
            return path
    group, _, name = option.rpartition("/")
    options = groups(sources).get(group, {})
    known = did_you_mean(name, options, f"{group}/") if options else did_you_mean(group, groups(sources))
    raise ConfigError([Problem(option, f"there is no such option. {known}")])


def option_text(option: str, sources: Sources = SHIPPED) -> str:
    """An option's file, to copy and edit, with the settings and comments of its bases (``base_loss``) written out.

    Args:
        option: ``group/option``, or a base.
        sources: where configs come from.

    Raises:
        ConfigError: there is no such option.
    """
    header, entries = _with_bases(option, sources)
    return header + "".join(entries.values())


def _with_bases(option: str, sources: Sources) -> tuple[str, dict[str, str]]:
    """The comments at the top of an option's file, and the lines of each of its top-level keys and its bases'."""
    text = option_file(option, sources).read_text(encoding="utf-8")
    header, *rest = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)
    own = {entry.partition(":")[0]: entry for entry in rest}
    inherited: dict[str, str] = {}
    if defaults := own.pop("defaults", ""):
        for base in _BASE.findall(defaults):
            inherited |= _with_bases(base, sources)[1]
        if (left := _BASE.sub("", defaults)).strip() != "defaults:":
            header += left
    target = {TARGET: own[TARGET]} if TARGET in own else {}
    return header, target | inherited | own


def _description(path: Path) -> str:
    lines = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("@package")), "")
