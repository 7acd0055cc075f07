"""Options composed once and settings applied to a copy are what Hydra composes: the tests' configs are the users'."""

from __future__ import annotations

import hydra
import pytest
from composing import compose_once

from rlexp.config import ConfigError, Sources, compose, load


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
    found = []
    for how in (hydra.compose, compose_once, compose_once):
        monkeypatch.setattr(compose, "compose", how)
        try:
            composed = load(overrides, Sources())
            found.append((composed.values, composed.problems))
        except ConfigError as error:
            found.append(({}, [*error.problems]))
    assert found[0] == found[1] == found[2]
