"""Wrong command lines are told what is wrong, before anything is built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import run_command

from rlexp import load_config
from rlexp.config import ConfigError, conf_dir
from rlexp.experiment import read_config

WRONG = [
    ("loss.clip_epsilom=0.1", "loss.clip_epsilom", "Did you mean loss.clip_epsilon?"),
    ("+loss.clip_epsilom=0.1", "loss.clip_epsilom", "Did you mean loss.clip_epsilon?"),
    ("++typo=1", "typo", "there is no such setting"),
    ("total_frame=5", "total_frame", "Did you mean total_frames?"),
    ("env=hoper", "env=hoper", "Did you mean hopper?"),
    ("env/transforms=runing", "env/transforms=runing", "Did you mean running?"),
    ("polcy/x=1", "polcy/x", "no such group"),
    ("env.id=Hoper-v5", "env.id=Hoper-v5", "Did you mean Hopper-v5?"),
    ("env.id=nowhere_to_find:Env-v0", "env.id", "cannot be imported"),
    ("minibatch_size=abc", "minibatch_size=abc", "integer"),
    ("minibatch_size=0", "minibatch_size=0", "greater than or equal to 1"),
    ("minibatch_size=1.5", "minibatch_size=1.5", "integer"),
    ("loss.gamma=1.5", "loss.gamma=1.5", "less than or equal to 1"),
    ("loss.gamma=nan", "loss.gamma=nan", "finite number"),
    ("optim.lr=-1", "optim.lr=-1", "greater than 0"),
    ("optim.schedule=cosin", "optim.schedule=cosin", "'cosine'"),
    ("policy.num_cells=[]", "policy.num_cells=[]", "at least one hidden layer"),
    ("policy.num_cells=[64,-1]", "policy.num_cells.1=-1", "greater than or equal to 1"),
    ("device=gpu", "device=gpu", "cpu"),
    ("seed=-1", "seed=-1", "greater than or equal to 0"),
    ("checkpoint.keep_last=1", "checkpoint.keep_last=1", "greater than or equal to 2"),
    ("logger.mode=on", "logger.mode", "'online'"),
    ("minibatch_size=2048", "minibatch_size=2048", "larger than a batch"),
    ("total_frames=100", "total_frames=100", "less than one batch"),
    ("env.num_envs=3", "collector.frames_per_batch=1024", "1023 or 1026"),
    ("env.frame_skip=3", "collector.frames_per_batch=1024", "1008 or 1056"),
    ("loss.gamma=${nowhere}", "loss.gamma", "nowhere"),
    ("no_equals_sign", "no_equals_sign", "cannot be read as key=value"),
    ("loss._target_=rlexp.losses.ClipPPOO", "loss._target_", "Did you mean"),
    ("loss._target_=rlexp.optim.Adam", "loss._target_=rlexp.optim.Adam", "not a kind of rlexp.losses.LossSpec"),
]


@pytest.mark.parametrize(("override", "key", "remedy"), WRONG, ids=[override for override, *_ in WRONG])
def test_wrong_override_is_named_with_its_remedy(override: str, key: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert key in str(caught.value)
    assert remedy in str(caught.value)


def test_all_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["env=hoper", "loss.clip_epsilom=0.1", "minibatch_size=abc", "+typo=1"])
    assert {p.key for p in caught.value.problems} == {"env", "loss.clip_epsilom", "minibatch_size", "typo"}


def test_missing_required_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"env\.id"):
        load_config(["env=gym"])


def test_whole_floats_are_whole_numbers() -> None:
    assert load_config(["total_frames=1e6"]).total_frames == 1_000_000


def test_config_survives_its_own_file_form() -> None:
    for overrides in ([], ["experiment=tutorial"], ["env=hopper", "logger=none"]):
        config = load_config(overrides)
        assert read_config(config.to_dict()) == config


def test_tutorial_is_the_tutorial() -> None:
    config = load_config(["experiment=tutorial"])
    assert (config.total_frames, config.num_epochs, config.minibatch_size, config.max_grad_norm) == (
        50_000,
        10,
        64,
        1.0,
    )
    assert (config.env.num_envs, config.collector.frames_per_batch) == (1, 1000)
    assert (config.optim.lr, config.optim.schedule) == (3e-4, "cosine")
    assert load_config(["experiment=tutorial", "minibatch_size=50"]).minibatch_size == 50


def test_every_shipped_option_composes() -> None:
    conf = conf_dir()
    for path in sorted(conf.glob("*/**/*.yaml")):
        group = path.parent.relative_to(conf)
        overrides = [f"{group}={path.stem}", *(["env.id=Hopper-v5"] if path.stem == "gym" else [])]
        assert load_config(overrides).total_frames > 0


def test_command_line_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "loss.clip_epsilom=0.1", "env=hoper", cwd=tmp_path)
    assert done.returncode == 2
    assert "2 problems" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_multirun_starts_no_job(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "-m", "seed=0,1", "minibatch_size=64,abc", cwd=tmp_path)
    assert done.returncode == 2
    assert "minibatch_size=abc" in done.stderr
    assert not list(tmp_path.iterdir())


def test_rejecting_and_helping_import_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['rlexp-train', *{!r}]; from rlexp.cli.train import main\ntry: main()\n"
    code += "finally: print('torch' in sys.modules, 'torchrl' in sys.modules, 'wandb' in sys.modules)"
    for arguments in (["--help"], ["loss.gamma=7"], ["env.id=Hoper-v5"]):
        (tmp_path / "probe.py").write_text(code.format(arguments))
        done = run_command(Path(sys.executable).name, "probe.py", cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "False False False", arguments


def test_help_names_groups_and_options(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "inverted_double_pendulum" in done.stdout
    assert "loss.clip_epsilon" in done.stdout


def test_unbuildable_parts_are_config_errors(tmp_path: Path) -> None:
    discrete = run_command("rlexp-train", "env=gym", "env.id=CartPole-v1", "logger=none", cwd=tmp_path)
    assert discrete.returncode == 2
    assert "Box" in discrete.stderr
    transform = run_command(
        "rlexp-train",
        "logger=none",
        "env.transforms.mine={_target_: torchrl.envs.StepCounter, max_stepz: 3}",
        cwd=tmp_path,
    )
    assert transform.returncode == 2
    assert "Did you mean max_steps?" in transform.stderr
    assert not list(tmp_path.glob("outputs/*/*"))
