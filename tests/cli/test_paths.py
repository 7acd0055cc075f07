"""Paths are text: a folder's name may look like a number, a date, nothing or a mapping."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from rlexp.cli import config as config_command
from rlexp.cli import evaluate, export, verify
from rlexp.cli.common import read_settings
from rlexp.config import ConfigError, Sources, expand_sweeps, load
from rlexp.config.paths import literal
from rlexp.experiment import load_config

NAMES = [
    "007", "2026_11_25", "1e5", "null", "a: b", "true", "0x10", "my run", "lr=0.1,seed=1", "run (copy)", "[x]",
    "{a: 1}",     "it's", "~", "#1", "a\\b", "ünï", "1_000", "-1", "${x}"[1:],
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_commands_path_is_read_as_it_is_written(name: str) -> None:
    found = read_settings(evaluate.EvalConfig, [f"checkpoint={name}"], paths=("checkpoint",))
    assert found.checkpoint == name
    exported = read_settings(
        export.ExportConfig, [f"checkpoint={name}", f"out={name}.onnx"], paths=("checkpoint", "out")
    )
    assert (exported.checkpoint, exported.out) == (name, f"{name}.onnx")
    quoted = read_settings(evaluate.EvalConfig, [f'checkpoint="{name}"'], paths=("checkpoint",))
    assert quoted.checkpoint == name


@pytest.mark.parametrize("name", NAMES)
def test_hydras_paths_are_read_as_they_are_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    composed = load([f"resume={name}", f"warm_start={name}", f"sweep.resume={name}", f"hydra.run.dir={name}"])
    assert composed.problems == []
    assert [composed.values[key] for key in ("resume", "warm_start")] == [name, name]
    assert composed.values["sweep"]["resume"] == name
    assert composed.run_dir == name


def test_a_teachers_path_is_read_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And becomes absolute: the run may be resumed from elsewhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("007", "lr=0.1,seed=1", "ünï"):
        (tmp_path / name).mkdir()
        found = load_config(["loss=distill", f"loss.teacher={name}"]).loss.to_dict()["teacher"]
        assert found == str(tmp_path / name)
    jobs = list(expand_sweeps(["loss=distill", "loss.teacher=1e5,2"]))
    assert [load(job).values["loss"]["teacher"] for job in jobs] == ["1e5", "2"]


def test_null_is_none_where_there_is_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(["resume=null"]).values["resume"] is None
    assert literal("seed=007") == "seed=007"


def test_a_sweep_over_paths_keeps_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = list(expand_sweeps(["warm_start=007,1e5", "seed=0,1"]))
    found = [(load(job).values["warm_start"], load(job).values["seed"]) for job in jobs]
    assert found == [("007", 0), ("007", 1), ("1e5", 0), ("1e5", 1)]


def test_a_run_with_an_equals_sign_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1,seed=1").mkdir()
    with pytest.raises(ConfigError, match=r"run_dir=lr=0\.1,seed=1\n.*metrics"):
        verify.verify(["lr=0.1,seed=1"])


def test_a_text_that_reads_like_a_number_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK", "3")
    with pytest.raises(ConfigError, match=r"text '3'.*oc\.decode"):
        load_config(["seed=${oc.env:TASK}"])
    assert load_config(["seed='${oc.decode:${oc.env:TASK}}'"]).seed == 3


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_a_byte_order_mark_is_named(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "marked.yaml"
    file.write_bytes(mark + b"# @package _global_\nseed: 6\n")
    with pytest.raises(ConfigError, match=r"marked\.yaml\n.*byte order mark"):
        load_config(["experiment=marked"], str(tmp_path))
    assert load_config([], str(tmp_path)).seed == 0  # no one asked for it
    file.write_bytes(b"# @package _global_\r\nseed: 6\r\n")
    assert load(["experiment=marked"], Sources(str(tmp_path))).values["seed"] == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loss:\n  gamma: 0.9\n", "must begin with the line '# @package _global_'"),
        ("", "holds no settings"),
        ("- a\n- b\n", "holds no settings"),
        ("# Mine.\n# @package _global_\nloss:\n  gamma: 0.9\n", "must begin with the line '# @package _global_'"),
    ],
    ids=["no package", "empty", "list", "late"],
)
def test_a_preset_that_sets_nothing_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text(text)
    (problem,) = load(["experiment=mine"], Sources(str(tmp_path))).problems
    assert problem.key == str(file)
    assert problem.message.startswith(told)
    file.write_text("#  @package  _global_ \nloss:\n  gamma: 0.9\n")
    assert load_config(["experiment=mine"], str(tmp_path)).loss.gamma == 0.9


def test_an_editor_s_lock_hides_no_problem(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / ".#mine.yaml").symlink_to("someone@somewhere.1234")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_  # everything\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"logger\.notes\n *Interpolation key 'nothing' not found"):
        load_config(["logger=wandb", "+logger.notes=${nothing}"], str(tmp_path))
    with pytest.raises(ConfigError, match="Too many components"):
        load_config(["experiment=mine"], str(tmp_path))


def test_a_name_that_names_no_folder_is_reported_as_the_setting_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env\.name=42\n *must be a valid string"):
        load_config(["env.name=42"])
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").touch()
    with pytest.raises(ConfigError, match=r"env/mine\.yaml\n *holds no settings"):
        load_config(["env=mine"], str(tmp_path))


def test_yml_is_named(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yml").write_text("defaults:\n  - gym\n")
    (problem,) = load(["env=mine"], Sources(str(tmp_path))).problems
    assert "mine.yml ends in .yml" in problem.message


def test_show_prints_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "from-the-environment-1")
    overrides: list[Any] = ["+env.kwargs.api_key=hunter2hunter2", "+env.kwargs.other=${oc.env:MY_API_KEY}"]
    config_command.config(["show", *overrides, "env.kwargs.end_token=7"])
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert "from-the-environment" not in shown
    assert 'api_key: "<redacted>"' in shown
    assert "end_token: 7" in shown
