"""Every kind of observation, of actions and of policy: it trains and is evaluated, or is refused with what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import composed
from choosing import ACTIONS, OBSERVATIONS

from rlexp import Trainer
from rlexp.config import ConfigError
from rlexp.experiment import ExperimentConfig

SMALL = [
    *("env=gym", "env.id=choosing:Choosing-v0", "env.num_envs=2", "env.num_workers=1", "env.init_random_steps=4"),
    *("collector.frames_per_batch=16", "minibatch_size=8", "num_epochs=1", "total_frames=16", "evaluation.episodes=2"),
    *("logger=none", "threads=1", "device=cpu", "policy.num_cells=[8]"),
]
RECURRENT = ["policy.sequence_length=4", "policy.hidden_size=4"]
POLICIES = {
    **{policy: [f"policy={policy}"] for policy in ("tanh_normal", "normal", "beta", "categorical")},
    **{policy: [f"policy={policy}", *RECURRENT] for policy in ("gru", "lstm")},
    "cnn": [
        "env/transforms=none",
        "policy=cnn",
        "policy.channels=[4]",
        "policy.kernel_sizes=[8]",
        "policy.strides=[4]",
    ],
}


def fitting(observation: str, action: str) -> list[str]:
    if observation == "image":
        return ["cnn"]
    return [*(["tanh_normal", "normal", "beta"] if action.startswith("box") else ["categorical"]), "gru", "lstm"]


def experiment(policy: str, observation: str, action: str, mask: str | None) -> ExperimentConfig:
    config = composed(*SMALL, *POLICIES[policy])
    env = composed(*SMALL, *POLICIES["cnn" if observation == "image" else "categorical"]).env
    kwargs = {"observation": observation, "action": action, "mask": mask}
    return config.model_copy(update={"env": env.model_copy(update={"kwargs": kwargs})})


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_policy_that_fits_trains_and_is_evaluated(observation: str, action: str, tmp_path: Path) -> None:
    """Policies take turns, so that each meets every kind of choice, masked and not."""
    fits, turn = fitting(observation, action), [*OBSERVATIONS].index(observation) + [*ACTIONS].index(action)
    for i, mask in enumerate([None] if action.startswith("box") else [None, "entry"]):
        trainer = Trainer(experiment(fits[(turn + i) % len(fits)], observation, action, mask), tmp_path / str(mask))
        (row,) = trainer
        trainer.close()
        assert "eval/return" in row


@pytest.mark.parametrize("observation", ["vector", "image"])
@pytest.mark.parametrize("action", ["discrete", "multi", "box_shape"])
def test_a_policy_that_does_not_fit_is_refused_with_those_that_do(
    observation: str, action: str, tmp_path: Path
) -> None:
    *others, last = fits = fitting(observation, action)
    for policy in POLICIES.keys() - set(fits):
        with pytest.raises(ConfigError) as caught:
            Trainer(experiment(policy, observation, action, None), tmp_path)
        assert f"policy={', '.join(others) + ' or ' if others else ''}{last}." in str(caught.value)
