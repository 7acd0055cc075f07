"""Options composed once and settings applied to a copy are what Hydra composes: the tests' configs are the users'."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from composing import compose_once, load_file
from omegaconf import OmegaConf

from rlexp.config import ConfigError, Sources, compose, load
from rlexp.experiment import load_config


@pytest.mark.parametrize(
    "overrides",
    [
        ["env=dm_control", "env.domain=cartpole", "env.task=run", "experiment=debug", "policy=gru", "loss.gamma=0.5"],
        ["policy={_target_: rlexp.policies.BetaConfig, num_cells: [3]}", "env=torch_cartpole", "env.num_envs=8"],
        ["logger=several", "~logger.sinks.csv", "+logger.sinks.csv.x=1", "env.transforms.a={_target_: a.B}"],
        ["~env", "hydra.run.dir=here"],
        ["loss.gamma=${nowhere}"],
        ["loss.gamma.deeper=1"],
    ],
)
def test_composed_once_is_what_hydra_composes(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found, copied = [], OmegaConf.load
    for how in (hydra.compose, compose_once, compose_once):
        monkeypatch.setattr(compose, "compose", how)
        monkeypatch.setattr(OmegaConf, "load", load_file if how is hydra.compose else copied)
        try:
            composed = load(overrides, Sources())
            found.append((composed.values, composed.problems))
        except ConfigError as error:
            found.append(({}, [*error.problems]))
    assert found[0] == found[1] == found[2]


def test_no_preset_is_what_holds_anyway() -> None:
    assert load(["experiment=null"]).values == load([]).values


def test_a_folder_without_the_primary_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    with pytest.raises(ConfigError, match=r"there is no train.yaml in .*, which has: config"):
        load([], Sources(config_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: [hopper]\n", "has itself among its defaults"),
        ("id: [1\nname: 2\n", r'hopper.yaml", line 2'),
        ("id: x\nid: y\n", "duplicate key id"),
    ],
    ids=["itself", "syntax", "twice"],
)
def test_what_is_wrong_in_an_option_of_ones_own_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "hopper.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(["env=hopper"], Sources(config_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "said"), [("def (", "SyntaxError"), ("import sys; sys.exit(3)", "SystemExit: 3"), ("x", "NameError")]
)
def test_an_environments_module_that_fails_is_named(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"env.id=failing:X-v0\n    its module cannot be imported: {said}"):
        load_config(["env=gym", "env.id=failing:X-v0"])
