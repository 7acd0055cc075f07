"""Each shipped option against what it builds; the files are found, so that none can be added without this."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlexp import Trainer, load_config
from rlexp.config import Config, Sources, check_targets, conf_dir, load, option_text
from rlexp.config.spec import locate, path_of
from rlexp.experiment import read_config

CONF = conf_dir()
# What rlexp-search tries is no part of an experiment; its own test checks it.
FILES = [path for path in sorted(CONF.glob("*/**/*.yaml")) if path.parent.name != "search"]
FIRST = {path.parent: path for path in reversed(FILES)}.values()
# What an option cannot have a value of its own for.
NEEDED = {
    **{f"collector/{name}": ["collector.num_workers=1"] for name in ("multi_sync", "multi_async", "ray")},
    "collector/device": ["env=torch_cartpole"],
    **{option: ["env.frame_skip=2"] for option in ("env/atari", "experiment/atari")},
    "env/gym": ["env.id=Pendulum-v1"],
    **{
        option: ["env.domain=cartpole", "env.task=swingup", "env.max_episode_steps=20"]
        for option in ("env/dm_control", "experiment/dm_control")
    },
    "env/mujoco": ["env.task._target_=rlexp.envs.mujoco.tasks.Swimmer"],
    "env/seen_target": ["policy.kernel_sizes=[4,2,1]"],
    "env/torchrl": ["env.make._target_=torchrl.envs.GymEnv", "env.make.env_name=Pendulum-v1"],
    "policy/action_value": ["loss=reppo"],
    "policy/categorical": ["env=cartpole"],
    "policy/cnn": ["env=cartpole", "env.from_pixels=true", "env/transforms=none"],
    # A run of the default environment.
    "loss/distill": [f"loss.teacher={Path(__file__).parents[1] / 'data' / 'run_of_format_3'}"],
    "loss/any": ["loss.loss_module._target_=torchrl.objectives.A2CLoss", "loss.loss_module.functional=false"],
    "optim/any": ["optim.optimizer._target_=torch.optim.SGD"],
}
SMALL = [
    *("env.num_envs=1", "evaluation.episodes=1", "env.init_random_steps=16"),
    *("collector.frames_per_batch=32", "minibatch_size=16", "total_frames=32", "num_epochs=1"),
]


def option(path: Path) -> str:
    return str(path.relative_to(CONF).with_suffix(""))


@pytest.mark.parametrize("path", FILES, ids=option)
def test_option_composes_instantiates_and_learns(path: Path, tmp_path: Path) -> None:
    group, _, name = option(path).rpartition("/")
    needed = NEEDED.get(option(path), [])
    experiment = load_config([f"{group}={name}", *needed, *SMALL])
    check_targets(experiment)
    values = experiment.to_dict()
    assert read_config(values, trust=[]).to_dict() == values  # what is shipped needs no trust
    if option(path) == "collector/ray":
        return  # a cluster takes ten seconds to start: test_multi.py trains with it
    trainer = Trainer.from_config(experiment, tmp_path)
    if group != "experiment":  # which is made of options that are trained with themselves
        assert trainer.update(trainer.collect())
    trainer.close()


def test_a_saved_target_is_the_one_that_options_name() -> None:
    """A resume compares them, with ``env=hopper`` on its command line."""
    named = {
        target for path in CONF.glob("**/*.yaml") for target in re.findall(r"_target_: (rlexp\.\S+)", path.read_text())
    }
    schemas = {
        target: found for target in named if inspect.isclass(found := locate(target)) and issubclass(found, Config)
    }
    assert len(schemas) > 20
    assert {target: path_of(found) for target, found in schemas.items()} == {target: target for target in schemas}


def settings_of(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    """Each setting of a file that has a target of its own: target, key, value and the comment on its line."""
    text = option_text(option(path))
    comments = {m[1]: m[2] for line in text.splitlines() if (m := re.match(r"\s*(\w+):.*?#(.*)", line))}

    def walk(node: Any) -> Iterator[tuple[str, str, Any, str]]:
        target = node.get("_target_")
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value)
            elif target is not None and key not in ("_target_", "defaults"):
                yield target, key, value, comments.get(key, "")

    yield from walk(OmegaConf.to_container(OmegaConf.create(text)))


@pytest.mark.parametrize("path", FILES, ids=option)
def test_a_copy_to_edit_has_all_settings_and_composes_to_the_same(path: Path, tmp_path: Path) -> None:
    text = option_text(option(path))
    assert "base_" not in text
    if text == path.read_text() and path not in FIRST:
        return  # a copy of the same text composes to the same as that of the group's first option
    copy = tmp_path / path.relative_to(CONF)
    copy.parent.mkdir(parents=True)
    copy.write_text(text)
    group, _, name = option(path).rpartition("/")
    overrides = [f"{group}={name}", *NEEDED.get(option(path), [])]
    assert load(overrides, Sources(config_dir=str(tmp_path))).values == load(overrides).values


@pytest.mark.parametrize("path", FILES, ids=option)
def test_values_that_differ_from_the_targets_defaults_have_a_reason(path: Path) -> None:
    for target, key, value, comment in settings_of(path):
        found = locate(target) if target != "???" else None
        is_spec = inspect.isclass(found) and issubclass(found, Config)
        built = [locate(name) for name in found.builds] if is_spec else [found]  # type: ignore[union-attr]
        for cls in filter(None, built):
            parameter = inspect.signature(cls).parameters.get(key)
            if parameter is None or parameter.default in (None, inspect.Parameter.empty):
                continue
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            named = default.__name__ if inspect.isclass(default) else default
            assert value == named or "default" in comment, f"{option(path)}: {key}: {value}, {target}: {named}"


@pytest.mark.parametrize("path", FILES, ids=option)
def test_every_setting_has_a_comment(path: Path) -> None:
    text = option_text(option(path))
    assert text.startswith("# ")
    # A file that only sets what its base comments needs none of its own.
    if "defaults:" not in text or path.stem == "gym":
        bare = [
            key for target, key, _, comment in settings_of(path) if not comment and not target.startswith("torchrl.")
        ]
        assert not bare
