"""`rlexp-report --wandb-workspace`: a W&B dashboard as code, looked at without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, complete, rows_of, run_command
from synthetic import config, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """The tiny run, and one with another setting, both offline in W&B."""
    cwd = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_run, cwd / "runs" / "a", ignore=shutil.ignore_patterns("wandb"))
    complete([*TINY, "loss.clip_epsilon=0.1", "hydra.run.dir=runs/b", "logger.mode=offline"], cwd)
    return cwd


def test_the_dashboard_has_every_metric_grouped_with_a_band(runs: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-report", "runs", f"out={tmp_path}", "--wandb-workspace", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "wandb_workspace.json") in done.stdout
    text = (tmp_path / "wandb_workspace.json").read_text()
    view = json.loads(text)
    assert (view["entity"], view["project"]) == ("", "rlexp")
    sections: dict[str, list[dict[str, Any]]] = {
        section["name"]: section["panels"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]
    }
    assert list(sections) == ["Evaluation", "Training", "Losses", "Throughput", "Settings"]
    lines = [panel["config"] for name, panels in sections.items() if name != "Settings" for panel in panels]
    logged = set().union(*rows_of(runs / "runs" / "a", timings=True))
    assert {metric for line in lines for metric in line["metrics"]} == logged - {"frames", "train/parameters_hash"}
    assert sections["Evaluation"][0]["config"]["metrics"] == ["eval/return"]
    for line in lines:
        assert (line["xAxis"], line["groupBy"], line["aggregate"]) == ("frames", "group", True)
        assert (line["groupAgg"], line["groupArea"]) == ("mean", "minmax")
    (runset,) = view["spec"]["section"]["runSets"]
    assert [key["name"] for key in runset["grouping"]] == ["group"]
    assert runset["runFeed"]["columnPinned"].keys() == {
        "run:displayName", "summary:eval/return", "config:loss.value.clip_epsilon",
    }  # fmt: skip
    coordinates = sections["Settings"][0]["config"]["columns"]
    assert [column["accessor"] for column in coordinates] == ["config:loss.value.clip_epsilon", "summary:eval/return"]

    run_command("rlexp-report", "runs", f"out={tmp_path}", "wandb_workspace=offline", cwd=runs)
    assert (tmp_path / "wandb_workspace.json").read_text() == text, "the same runs give the same file"


def test_what_cannot_be_is_reported(runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "local" / "a", config(), [1.0])
    done = run_command("rlexp-report", "local", "--wandb-workspace", cwd=tmp_path)
    assert (done.returncode, "logged to none" in done.stderr) == (1, True)
    done = run_command("rlexp-report", str(runs / "runs"), "--wandb-workspace=online", cwd=tmp_path)
    assert (done.returncode, "no W&B API key" in done.stderr) == (1, True)
    done = run_command("rlexp-report", "local", "--wandb-workspce", cwd=tmp_path)
    assert (done.returncode, "Did you mean wandb_workspace?" in done.stderr) == (2, True)
