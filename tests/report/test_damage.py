"""Whatever is wrong with one run, the others are reported, and it is listed with its reason."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic import config, write_run

from rlexp.report import load_runs, make_report, markdown, write_report
from rlexp.report.watch import Seen, table


def setting(key: str, value: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        values = yaml.safe_load((run / "config.yaml").read_text())
        values[key] = value
        (run / "config.yaml").write_text(yaml.safe_dump(values))

    return change


def entry(key: str, value: Any) -> Callable[[Path], None]:
    """Change the last row of metrics.jsonl."""

    def change(run: Path) -> None:
        *lines, last = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(json.loads(last) | {key: value})]) + "\n")

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def other_kind(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return change


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 9)
)

LAUGHS_IN_LISTS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))

UNREADABLE = {
    "seed is a list": setting("seed", [1, 2]),
    "seed is not a number": setting("seed", float("nan")),
    "time is text": entry("time/collect", "x"),
    "rate is text": entry("time/fps", "x"),
    "rate is null": entry("time/fps", None),
    "frames beyond any float": entry("frames", 10**400),
    "return beyond any float": entry("eval/return", 10**400),
    "return that overflows": entry("eval/return", 1.7e308),
    "return is not a number": entry("eval/return", float("nan")),
    "summary is a list": text("summary.json", "[1]"),
    "summary is deep": text("summary.json", "[" * 100_000),
    "summary is empty": text("summary.json", ""),
    "config is deep": text("config.yaml", "[" * 5000 + "]" * 5000),
    "config is deep in mappings": text("config.yaml", "{a: " * 900 + "1" + "}" * 900),
    "config contains itself": text("config.yaml", "a: &a\n  b: *a\n"),
    "config explodes": text("config.yaml", LAUGHS),
    "config explodes in lists": text("config.yaml", LAUGHS_IN_LISTS),
    "config explodes into nothing": text("config.yaml", LAUGHS.replace("{x: 1}", "{}")),
    "config builds an object": text("config.yaml", 'x: !!python/object/apply:os.system ["true"]\n'),
    "config is Latin-1": text("config.yaml", b"a: \xff\xfe"),
    "config is empty": text("config.yaml", ""),
    "config is a pipe": other_kind("config.yaml", os.mkfifo),
    "metrics are a folder": other_kind("metrics.jsonl", Path.mkdir),
    "metrics are a pipe": other_kind("metrics.jsonl", os.mkfifo),
    "last row is lost": lambda run: text("metrics.jsonl", (run / "metrics.jsonl").read_text().rsplit("\n", 2)[0])(run),
}
READABLE = {
    "dollar signs": setting("note", r"$\\frac$ and $HOME/a_$USER"),
    "keys that are not text": setting(3, {None: 2}),  # type: ignore[arg-type]
    "dates, bytes and sets": lambda run: text(
        "config.yaml",
        (run / "config.yaml").read_text() + "when: [2020-01-01]\nraw: !!binary aGVsbG8=\nset: !!set {a, b}\n",
    )(run),
    "environment is text": setting("env", "x"),
    "environment has no name": setting("env", {"name": None}),
    "no frames to train": setting("total_frames", 0),
    "start is a list": text("metadata.json", '{"started": ["x"]}'),
    "origin is something else": text("metadata.json", '{"git": [1], "sessions": 3, "versions": "x"}'),
    "budget is text": text("metadata.json", '{"git": null, "sessions": [{"total_frames": "x"}]}'),
    "huge integer": setting("total_frames", 10**400),
    "empty lines": lambda run: text("metrics.jsonl", f"\n{(run / 'metrics.jsonl').read_text()}\n\n")(run),
}


def report_with(tmp_path: Path, change: Callable[[Path], None]) -> tuple[str, str]:
    """The status and the problem of a damaged run, next to a sound one that is reported."""
    write_run(tmp_path / "runs" / "sound", config(seed=0), [1.0, 2.0])
    damaged = write_run(tmp_path / "runs" / "damaged", config(seed=1), [3.0, 4.0])
    change(damaged)
    made = make_report(load_runs([tmp_path / "runs"]))
    write_report(made, tmp_path / "report")
    assert str(tmp_path / "runs" / "sound") in (tmp_path / "report" / "index.html").read_text()
    table(Seen([tmp_path / "runs"]).runs(), [tmp_path])
    (found,) = (run for run in load_runs([tmp_path / "runs"]) if run.path == damaged)
    if not found.counted:
        assert found.problem
        assert str(damaged) in markdown(made)
    return found.status, found.problem


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_damaged_run_is_listed_and_the_others_reported(change: Callable[[Path], None], tmp_path: Path) -> None:
    status, _ = report_with(tmp_path, change)
    assert status == "unreadable"


@pytest.mark.parametrize("change", READABLE.values(), ids=READABLE.keys())
def test_what_can_be_read_is_averaged(change: Callable[[Path], None], tmp_path: Path) -> None:
    assert report_with(tmp_path, change) == ("completed", "")


def test_what_is_missing_from_an_averaged_run_is_reported(tmp_path: Path) -> None:
    values = config() | {"collector": {"frames_per_batch": 1000}}
    run = write_run(tmp_path / "run", values, [1.0, 2.0], rows=16)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:3], *lines[8:]]))
    (run / "metadata.json").write_text("")
    made = make_report(load_runs([run]))
    (result,) = made.results
    assert result.mean.value == 2.0
    text = markdown(made)
    assert "5 of 16 rows are missing" in text
    assert "metadata.json: is empty" in text


def test_a_torn_last_line_with_a_line_end_is_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0, 2.0], status=None)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"frames": 3000, "eval/ret\n\n')
    (found,) = load_runs([run])
    assert (found.status, found.returns.tolist()) == ("unfinished", [1.0, 2.0])


@pytest.mark.parametrize(
    ("owner", "status"),
    [
        (None, "unfinished"),
        (f"process {os.getpid()} on {socket.gethostname()}", "running"),
        (f"process 999999999 on {socket.gethostname()}", "killed"),
        ("process 1 on another-machine", "running"),
        (f"process 999999999 on {socket.gethostname()}\nanother boot-id pid:[1]", "running"),
    ],
    ids=["no owner", "this process", "a dead process", "another machine", "another machine of this name"],
)
def test_a_run_without_an_end_is_judged_by_its_process(owner: str | None, status: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0], status="running")
    if owner is not None:
        (run / ".lock").write_text(owner)
    (found,) = load_runs([run])
    assert found.status == status


def test_an_environment_in_which_all_are_equal_pulls_no_mean_down(tmp_path: Path) -> None:
    for env, finals in (("hopper", (0.0, 10.0)), ("inverted_double_pendulum", (0.0, 4.0)), ("reacher", (7.0, 7.0))):
        for clip_epsilon, final in zip((0.1, 0.2), finals, strict=True):
            for seed in (0, 1):
                values = config(seed=seed, clip_epsilon=clip_epsilon)
                values["env"] |= {"name": env, "id": env}
                write_run(tmp_path / f"{env}{clip_epsilon}{seed}", values, [final])
    made = make_report(load_runs([tmp_path]))
    assert made.overall is not None
    assert made.overall.name == "2 of 3 environments"
    means = {variant: estimates["mean"].value for variant, estimates in made.overall.aggregates.items()}
    assert means == {"loss.clip_epsilon=0.1": 0.0, "loss.clip_epsilon=0.2": 1.0}
    assert "all final evaluations are equal in reacher" in markdown(made)
    write_report(made, tmp_path / "report")
    assert "all final evaluations are equal in reacher" in (tmp_path / "report" / "index.html").read_text()
