"""Hooks of MkDocs: the site's generated pages, and links that work both in the repository and on the site.

``docs/*.md`` are written for both. Generated when the site is built are the options of each config group, from YAML
comments and schemas; the help of each command; the API reference, from docstrings; the notebook; and the pages at the
top of the repository.
"""

from __future__ import annotations

import inspect
import json
import os
import posixpath
import re
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from rlexp.config import TARGET, Config, Node, conf_dir, groups, option_file, option_text
from rlexp.config.spec import locate
from rlexp.experiment import ExperimentConfig, SweepConfig

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

NOTEBOOK = "examples/first_run.ipynb"
TOP = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    NOTEBOOK: "notebook.md",
}
"""Files outside of ``docs``, and the pages that they are on the site."""

REFERENCE = {
    "experiments": ("Experiments", [
        "rlexp.experiment.load_config", "rlexp.experiment.read_config", "rlexp.training.trainer.Trainer",
        "rlexp.experiment.ExperimentConfig", "rlexp.experiment.EvaluationConfig", "rlexp.experiment.CheckpointConfig",
        "rlexp.callbacks.Callback", "rlexp.callbacks.Training", "rlexp.sweeps.run_jobs",
    ]),
    "agents": ("Trained agents", ["rlexp.agent", "rlexp.agent.evaluation"]),
    "config": ("Configs", ["rlexp.config"]),
    "envs": ("Environments", ["rlexp.envs", "rlexp.envs.arrays.ArrayEnv", "rlexp.envs.mujoco.task.MujocoTask"]),
    "policies": ("Policies", ["rlexp.policies"]),
    "losses": ("Losses and learners", ["rlexp.losses", "rlexp.losses.module.Loss", "rlexp.training.learners"]),
    "optim": ("Optimizers", ["rlexp.optim"]),
    "collectors": ("Collectors", ["rlexp.collectors"]),
    "loggers": ("Loggers", ["rlexp.loggers"]),
}  # fmt: skip
"""Pages of the API reference: title, and what they show of modules (what ``__all__`` names) or single objects."""

_SETTING = re.compile(r"^( *)([\w.]+):(?: +([^\s#].*?))?(?: +# (.*))?$")
_BASED_ON = re.compile(r"^  - (\w+)$", re.MULTILINE)
_SELECTS = re.compile(r"^  - override /?(\S+?)(?:@\S+)?: (\S+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, Path(NOTEBOOK).name, abs_src_path=str(ROOT / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page that is read in the repository as well to where they lead on the site."""
    path = page.file.src_uri
    origin = {site: top for top, site in TOP.items()}.get(path, f"docs/{path}")
    return site_links(markdown, origin, str(config.extra["repository"] or "")) if (ROOT / origin).exists() else markdown


def pages() -> dict[str, str]:
    """Every generated page, by its path on the site."""
    found = {path: (ROOT / top).read_text(encoding="utf-8") for top, path in TOP.items()}
    found[TOP[NOTEBOOK]] = notebook_page(found[TOP[NOTEBOOK]])
    found["options/experiment_settings.md"] = experiment_page()
    for group in options():
        found[f"options/{group.replace('/', '_')}.md"] = group_page(group)
    for name, (title, objects) in REFERENCE.items():
        shown = "\n\n".join(f"::: {path}" for path in objects)
        found[f"reference/{name}.md"] = f"# {title}\n\n{shown}\n"
    found["reference/commands.md"] = commands_page()
    return found


@cache
def options() -> dict[str, dict[str, str]]:
    """Every group of options, and each option's description."""
    return groups()


def site_links(text: str, origin: str, repository: str) -> str:
    """The text of a file of the repository, with links as they are on the site.

    Args:
        text: Markdown.
        origin: the file's path in the repository.
        repository: address of the repository, where links to code lead; empty leaves such a link's text alone.
    """

    def link(match: re.Match[str]) -> str:
        shown, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if there in TOP:
            return f"{shown}({TOP[there]}{hash_}{anchor})"
        if there.startswith("docs/"):
            return f"{shown}({there.removeprefix('docs/')}{hash_}{anchor})"
        if not repository:
            return shown.removeprefix("[").removesuffix("]")
        return f"{shown}({repository.removesuffix('/')}/blob/main/{there})"

    prose_or_code = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    linked = [
        part if part.startswith("```") else re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, part) for part in prose_or_code
    ]
    return "".join(linked)


def notebook_page(text: str) -> str:
    """A notebook as a page: its prose, and its code in blocks."""
    cells = json.loads(text)["cells"]
    blocks = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    first, *rest = blocks
    return "\n\n".join([first, f"[Download the notebook]({Path(NOTEBOOK).name}){{ .md-button }}", *rest]) + "\n"


def commands_page() -> str:
    """The help of each command."""
    blocks = ["# Commands"]
    for script in sorted(entry_points(group="console_scripts"), key=str):
        module, _, function = script.value.partition(":")
        if module.startswith("rlexp.cli."):
            code = f"import sys; sys.argv = ['{script.name}', '--help']; from {module} import {function}; {function}()"
            environment = os.environ | {"COLUMNS": "100"}
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
            )
            blocks.append(f"## {script.name}\n\n```text\n{done.stdout.replace(str(conf_dir()), 'conf').rstrip()}\n```")
    return "\n\n".join(blocks) + "\n"


def experiment_page() -> str:
    """The settings at the top level of an experiment."""
    text = (conf_dir() / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    rows = [row for row in _rows(ExperimentConfig, text) if row[0] not in options()]
    written = dict(settings(text))
    rows += [(name, written[name][0], "", written[name][1]) for name in ("resume", "trust")]
    rows += _rows(SweepConfig, text, "sweep.")
    return (
        "# Experiment\n\nSettings at the top level, such as `rlexp-train total_frames=1_000_000`. "
        f"The other settings belong to groups of options.\n\n{_table(rows)}"
    )


def group_page(group: str) -> str:
    """The options of a group: a table of settings for each that a schema describes, and what the others set."""
    described, variants, presets = [], [], []
    for name, description in options()[group].items():
        # An option's own settings come before those that it shares with others.
        text = option_file(f"{group}/{name}").read_text(encoding="utf-8") + option_text(f"{group}/{name}")
        schema = _schema(group, text)
        if schema is not None:
            summary = (inspect.getdoc(schema) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "`")
            built = f"{summary}\n\n" if summary else ""
            described.append(
                f"## `{group}={name}`\n\n{_markdown(description)}\n\n{built}{_table(list(_rows(schema, text)))}"
            )
        elif based_on := _BASED_ON.search(text):
            variants.append((name, based_on[1], description, option_text(f"{group}/{name}")))
        else:
            code = re.sub(r"\A(?:#.*\n)+", "", option_text(f"{group}/{name}"))
            presets.append(f"## `{group}={name}`\n\n{_markdown(description)}\n\n```yaml\n{code.strip()}\n```\n")
    based = [name for name, *_ in variants]
    lines = [f"# {group}", "", f"Chosen by `{group}=`:", "", "| option | |", "| --- | --- |"]
    for name, description in options()[group].items():
        if name not in based:
            anchor = f"{group}{name}".replace("/", "")
            lines.append(f"| [`{group}={name}`](#{anchor}) | {_markdown(description)} |")
    return "\n\n".join(["\n".join(lines), *_variants(group, variants), *described, *presets]) + "\n"


def _variants(group: str, variants: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    """Options that take another option of the group and set some of its values."""
    for base in dict.fromkeys(based_on for _, based_on, _, _ in variants):
        lines = [f"## Based on `{group}={base}`", "", "| option | sets | |", "| --- | --- | --- |"]
        for name, based_on, description, text in variants:
            if based_on == base:
                values = {key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "name")}
                sets = [f"`{group}.{key}={value}`" for key, value in values.items()]
                sets += [f"`{chosen}={option}`" for chosen, option in _SELECTS.findall(text)]
                lines.append(f"| `{group}={name}` | {', '.join(sets)} | {_markdown(description)} |")
        yield "\n".join(lines)


def _schema(group: str, text: str) -> type[Config] | None:
    """What reads an option: the class that it names, or the group's own where it is the only one."""
    target = re.search(rf"^{TARGET}: (\S+)", text, re.MULTILINE)
    found: object
    if target is not None:
        found = locate(target[1])
    elif group in ("evaluation", "checkpoint"):
        found = ExperimentConfig.model_fields[group].annotation
    else:
        return None
    assert inspect.isclass(found)
    assert issubclass(found, Config)
    return found


Row = tuple[str, str, str, str]


def _rows(schema: type[Config], text: str, prefix: str = "") -> Iterator[Row]:
    """Setting, default, type and meaning of each field of a schema, in the order of the file where it is in it."""
    written = dict(settings(text))
    documented = attributes(schema)
    fields = schema.model_fields
    inside = [name.removeprefix(prefix).partition(".")[0] for name in written if name.startswith(prefix)]
    for name in dict.fromkeys([*(name for name in inside if name in fields), *fields]):
        path, annotation = f"{prefix}{name}", fields[name].annotation
        nested = any(key.startswith(f"{path}.") for key in written)
        if nested and inspect.isclass(annotation) and issubclass(annotation, Config):
            yield from _rows(annotation, text, f"{path}.")
        elif not (prefix == "" and schema is ExperimentConfig and path not in written):
            value, meaning = written.get(path, ("", ""))
            yield path, value, kind(annotation, fields[name].metadata), meaning or documented.get(name, "")


def settings(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """From a YAML file: each setting's full path, its value as written, and its comment."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if (match := _SETTING.match(line)) is None or match[2] == "defaults":
            continue
        indent, key, value, comment = match.groups()
        path = [*(entry for entry in path if entry[0] < len(indent)), (len(indent), key)]
        yield ".".join(name for _, name in path), (value or "", comment or "")


def attributes(schema: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its attributes."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            found[name] = re.sub(r"\s+", " ", meaning).replace("``", "`").rstrip(".;,")
    return found


def kind(annotation: object, metadata: Sequence[object] = ()) -> str:
    """A type as a reader of the options needs it: ``integer ≥ 1``, the words that are allowed, or ``null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = "".join(_bounds(metadata))
    if origin is Annotated:
        return kind(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return ", ".join(kind(each) for each in arguments)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value) if not isinstance(value, str) else value}`" for value in arguments)
    if origin is dict:
        return "names and their " + ("values" if arguments[1] is Any else f"`{TARGET}`")
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"list of {kind(arguments[0])}"
    if annotation is type(None):
        return "`null`"
    if annotation is Any:
        return "any value"
    if inspect.isclass(annotation) and issubclass(annotation, Config | Node):
        return f"a `{TARGET}`"
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}
    return names[annotation] + bounds  # type: ignore[index]


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for each in metadata:
        yield from _bounds(getattr(each, "metadata", ()))  # pydantic's Field
        yield from (f" {sign} {getattr(each, name)}" for name, sign in signs.items() if hasattr(each, name))


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "It has no settings.\n"
    lines = ["| setting | default | type | meaning |", "| --- | --- | --- | --- |"]
    for name, default, type_, meaning in rows:
        shown = f"`{_cell(default)}`" if default else ""
        lines.append(f"| `{name}` | {shown} | {_cell(type_)} | {_cell(_markdown(meaning))} |")
    return "\n".join(lines) + "\n"


def _markdown(comment: str) -> str:
    """A YAML comment as Markdown: settings, and what would be read as markup, are code."""
    comment = re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", comment)
    return re.sub(r"'[^']*=[^']*'|\{[^}]*\}|(?<![\w\[])(?:[+~]?[\w./]+=\S*[^\s,.;:)]|_\w+_(?!\w))", r"`\g<0>`", comment)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
