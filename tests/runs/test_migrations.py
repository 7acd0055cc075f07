"""Runs that earlier versions saved: they load, resume as they did, and evaluate."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rlexp import Trainer, load_config, load_policy
from rlexp.agent import Agent
from rlexp.agent.evaluation import evaluate
from rlexp.config.legacy import current_config, current_override, current_target
from rlexp.config.spec import locate
from rlexp.experiment import read_config
from rlexp.runs import checkpoint
from rlexp.runs.manifest import FORMAT_VERSION

DATA = Path(__file__).parent.parent / "data"
RUNS = ["run_of_format_3", "recurrent_run_of_format_3"]


@pytest.fixture(params=RUNS)
def old_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run that may be written to; its name in ``DATA`` is that of its folder."""
    copy: Path = shutil.copytree(DATA / request.param, tmp_path / request.param)
    return copy


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(row: dict[str, Any]) -> dict[str, float]:
    """A row without what the clock decides, and the hash of weights that another processor rounds otherwise."""
    return {k: v for k, v in row.items() if not k.startswith("time/") and k != "train/parameters_hash"}


def test_the_data_is_of_format_3() -> None:
    for name in RUNS:
        manifests = list((DATA / name / "checkpoints").glob("*/manifest.json"))
        assert manifests
        assert all(json.loads(path.read_text())["format_version"] == 3 for path in manifests)


def test_it_is_resumed_as_the_earlier_version_resumed_it(old_run: Path) -> None:
    before = rows(old_run / "metrics.jsonl")
    trainer = Trainer.resume(old_run, ["total_frames=2048"])
    assert trainer.frames == 1024
    trainer.fit()
    found = rows(old_run / "metrics.jsonl")
    assert [comparable(row) for row in found[: len(before)]] == [comparable(row) for row in before]
    expected = [row for row in rows(DATA / f"{old_run.name}_continued.jsonl") if row["frames"] > 1024]
    assert [row["frames"] for row in found[len(before) :]] == [1280, 1536, 1792, 2048]
    for row, theirs in zip(found[len(before) :], expected, strict=True):
        # loss/kl is the mean of differences of numbers near 1, and rounds accordingly.
        assert (
            comparable(theirs).items()
            <= {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in comparable(row).items()}.items()
        )
    saved = checkpoint.load(old_run)
    assert saved.state.frames == 2048
    manifest = json.loads((saved.path / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION


def test_it_is_evaluated_to_what_its_summary_says(old_run: Path) -> None:
    agent = Agent(old_run)
    state = checkpoint.load(old_run).state
    final = state.evaluator["final"]
    found = evaluate(agent.env, agent.networks.actor, final["seeds"])
    agent.env.close()
    assert found.returns == pytest.approx(final["returns"], rel=1e-3)
    summary = json.loads((old_run / "summary.json").read_text())
    assert found.mean_return == pytest.approx(summary["final"]["eval/return"], rel=1e-3)
    policy = load_policy(old_run)
    assert policy(torch.zeros(3, 9)).shape == (3, 1)


def test_a_dict_that_was_one_vector_stays_one(tmp_path: Path) -> None:
    name, trust = "run_with_a_dict", ["parts"]
    run = shutil.copytree(DATA / name, tmp_path / name)
    agent = Agent(run, trust=trust)
    final = checkpoint.load(run).state.evaluator["final"]
    found = evaluate(agent.env, agent.networks.actor, final["seeds"])
    agent.env.close()
    assert found.returns == pytest.approx(final["returns"], rel=1e-3)
    assert load_policy(run, trust=trust)(torch.zeros(3, 9)).shape == (3, 2)

    Trainer.resume(run, ["trust=[parts]", "total_frames=128"]).fit()
    expected = rows(DATA / f"{name}_continued.jsonl")
    resumed = rows(run / "metrics.jsonl")
    assert [row["frames"] for row in resumed] == [32, 64, 96, 128]
    for row, theirs in zip(resumed, expected, strict=True):
        assert comparable(row) == pytest.approx(comparable(theirs), rel=1e-3, abs=1e-6)


def test_config_with_the_names_of_then_is_todays() -> None:
    for name in RUNS:
        saved = checkpoint.load(DATA / name)
        manifest = json.loads((saved.path / "manifest.json").read_text())
        text = json.dumps(manifest)
        assert "rlexp.collectors.RolloutCollector" in text
        assert "rlexp.normalization.RunningObservationNorm" in text
        config = read_config(saved.config)
        assert config.kernels == "auto"
        assert type(config.collector).__name__ == "SyncCollectorConfig"
        assert read_config(config.to_dict()) == config


@pytest.mark.parametrize(
    ("collector", "kernels"),
    [
        ({"_target_": "rlexp.collectors.RolloutCollector"}, "auto"),
        ({"_target_": "rlexp.collectors.SyncCollector"}, False),
        ({"_target_": "rlexp.collectors.MultiSyncCollector", "inner": "rollout"}, "auto"),
        ({"_target_": "rlexp.collectors.MultiSyncCollector", "inner": "sync"}, False),
    ],
)
def test_what_collected_decides_whether_kernels_run(collector: dict[str, Any], kernels: object) -> None:
    found = current_config({"collector": collector, "seed": 1})
    assert found["kernels"] == kernels
    assert "inner" not in found["collector"]
    assert found["seed"] == 1
    assert collector.get("inner") in (None, "rollout", "sync")  # what was given is left as it was


def test_targets_of_then_are_classes_of_today() -> None:
    from rlexp.config import legacy

    for old, new in legacy._TARGETS.items():
        assert current_target(old) == new
        assert isinstance(locate(new), type)
    assert current_target("torchrl.envs.RewardSum") == "torchrl.envs.RewardSum"


@pytest.mark.parametrize(
    ("override", "current", "warning"),
    [
        ("collector=rollout", "collector=sync", "collector=rollout is now collector=sync"),
        ("collector.inner=sync", None, "collector.inner is ignored"),
        ("collector=multi_sync", "collector=multi_sync", ""),
    ],
)
def test_overrides_of_then_work_with_a_warning(
    override: str, current: str | None, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rlexp"):
        assert current_override(override) == current
        config = load_config([override])
    assert (warning in caplog.text) if warning else not caplog.text
    expected = "MultiSyncCollectorConfig" if "multi" in override else "SyncCollectorConfig"
    assert type(config.collector).__name__ == expected
