"""What is wrong with a command line is reported before anything is built."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import pytest
from commands import call_command, run_command

from rlexp import load_config
from rlexp.config import ConfigError, check_targets
from rlexp.experiment import read_config

NET = "policy.actor_network={_target_: torchrl.modules.MLP"
LOSS = ["loss=any", "loss.loss_module._target_=torchrl.objectives.ClipPPOLoss"]

# command line, key that the message must name, remedy that it must give
WRONG: list[tuple[str, str, str]] = [
    # names of settings
    ("loss.clip_epsilom=0.1", "loss.clip_epsilom", "Did you mean loss.clip_epsilon?"),
    ("+loss.clip_epsilom=0.1", "loss.clip_epsilom", "Did you mean loss.clip_epsilon?"),
    ("++loss.clip_epsilom=0.1", "loss.clip_epsilom", "Did you mean loss.clip_epsilon?"),
    ("loss.gama=0.9", "loss.gama", "Did you mean loss.gamma?"),
    ("loss.lambda=0.9", "loss.lambda", "Did you mean loss.lmbda?"),
    ("loss.entropy_coef=0.1", "loss.entropy_coef", "Did you mean loss.entropy_coeff?"),
    ("total_frame=5", "total_frame", "Did you mean total_frames?"),
    ("max_gradnorm=5", "max_gradnorm", "Did you mean max_grad_norm?"),
    ("epochs=5", "epochs", "Did you mean critic_num_epochs or num_epochs?"),
    ("+typo=1", "typo", "there is no such setting. Available:"),
    ("env.num_env=4", "env.num_env", "Did you mean env.num_envs?"),
    ("env.frameskip=4", "env.frameskip", "Did you mean env.frame_skip?"),
    ("policy.num_cell=[4]", "policy.num_cell", "Did you mean policy.num_cells?"),
    ("collector.frames_perbatch=512", "collector.frames_perbatch", "Did you mean collector.frames_per_batch?"),
    ("optim.learning_rate=1e-3", "optim.learning_rate", "Available: betas"),
    ("evaluation.episode=3", "evaluation.episode", "Did you mean evaluation.episodes?"),
    ("checkpoint.keep=3", "checkpoint.keep", "Did you mean checkpoint.keep_last?"),
    ("logger.modes=offline", "logger.modes", "Did you mean logger.mode?"),
    ("logger=several logger.sinks.wandb.mod=x", "logger.sinks.wandb.mod", "Did you mean logger.sinks.wandb.mode?"),
    ("logger=several +logger.sinks.cvs.x=1", "logger.sinks.cvs", "Did you mean logger.sinks.csv?"),
    ("logger=several ~logger.sinks.cvs", "config", "'logger.sinks.cvs' does not exist"),
    ("env.transforms.observation_nrm.clip=5", "env.transforms.observation_nrm", "Did you mean env.transforms.observ"),
    ("lossy.gamma=0.9", "lossy", "Did you mean loss?"),
    ("experiment=ant policy=beta", "policy.scale_init", "mujoco_task sets it: leave it out with '~policy.sc"),
    ("experiment=ant policy=beta policy.scale_init=1", "policy.scale_init", "orthogonal, shared."),
    # groups and options
    ("env=hoper", "env=hoper", "Did you mean hopper?"),
    ("env=xyzzy", "env=xyzzy", "Available: acrobot, ant,"),
    ("policy=tanhnormal", "policy=tanhnormal", "Did you mean tanh_normal?"),
    ("loss=ppo", "loss=ppo", "Did you mean clip_ppo or kl_ppo?"),
    ("optim=adan", "optim=adan", "Did you mean adam?"),
    ("collector=sink", "collector=sink", "Available: device, multi_async, multi_sync, ray, sync"),
    ("experiment=tutoral", "experiment=tutoral", "Did you mean tutorial?"),
    ("experiment=hoper", "experiment=hoper", "Did you mean hopper?"),
    ("loss=base_loss", "loss=base_loss", "there is no such option"),
    ("logger=wandbb", "logger=wandbb", "Did you mean wandb?"),
    ("env/transforms=runing", "env/transforms=runing", "Did you mean running?"),
    ("polcy/x=1", "polcy/x", "no such group"),
    ("logger=null", "logger=null", "Available:"),
    ("env/transforms=null", "env/transforms=null", "Available: frozen, none, running"),
    # types and ranges
    ("minibatch_size=abc", "minibatch_size=abc", "must be a valid integer"),
    ("minibatch_size=0", "minibatch_size=0", "greater than or equal to 1"),
    ("minibatch_size=1.5", "minibatch_size=1.5", "must be a valid integer"),
    ("minibatch_size=true", "minibatch_size=True", "must be a valid integer"),
    ("minibatch_size=null", "minibatch_size=None", "must be a valid integer"),
    ("num_epochs=-1", "num_epochs=-1", "greater than or equal to 1"),
    ("loss.gamma=1.5", "loss.gamma=1.5", "less than or equal to 1"),
    ("loss.gamma=nan", "loss.gamma=nan", "finite number"),
    ("loss.lmbda=-0.1", "loss.lmbda=-0.1", "greater than or equal to 0"),
    ("loss.clip_epsilon=abc", "loss.clip_epsilon=abc", "must be a valid number"),
    ("loss.clip_epsilon=0", "loss.clip_epsilon=0", "greater than 0"),
    ("loss.normalize_advantage=1", "loss.normalize_advantage=1", "must be a valid boolean"),
    ("loss.loss_critic_type=huber", "loss.loss_critic_type=huber", "'smooth_l1'"),
    ("max_grad_norm=inf", "max_grad_norm=inf", "finite number"),
    ("optim.lr=-1", "optim.lr=-1", "greater than 0"),
    ("optim.lr='1e-3'", "optim.lr=1e-3", "must be a valid number"),
    ("optim.betas=[0.9]", "optim.betas", "at least 2 items"),
    ("optim.betas=[0.9,1.0]", "optim.betas.1=1.0", "less than 1"),
    ("optim.schedule=cosin", "optim.schedule", "'cosine'"),
    ("policy.num_cells=[]", "policy.num_cells=[]", "at least one hidden layer"),
    ("policy.num_cells=64", "policy.num_cells=64", "must be a valid list"),
    ("policy.num_cells=[64,-1]", "policy.num_cells.1=-1", "greater than or equal to 1"),
    ("policy.activation_class=Tnah", "policy.activation_class=Tnah", "Did you mean Tanh?"),
    ("device=gpu", "device=gpu", "cpu"),
    ("threads=0", "threads", "greater than or equal to 1"),
    ("seed=-1", "seed=-1", "greater than or equal to 0"),
    ("env.num_envs=0", "env.num_envs=0", "greater than or equal to 1"),
    ("env.backend=gym", "env.backend=gym", "'gymnasium'"),
    ("checkpoint.keep_last=1", "checkpoint.keep_last=1", "greater than or equal to 2"),
    ("logger.mode=on", "logger.mode", "'online'"),
    ("evaluation.interval=0", "evaluation.interval=0", "greater than or equal to 1"),
    # rules across settings
    ("minibatch_size=2048", "minibatch_size=2048", "larger than a batch"),
    ("total_frames=100", "total_frames=100", "less than one batch"),
    ("env.num_envs=3", "collector.frames_per_batch=1024", "1023 or 1026"),
    ("env.frame_skip=3", "collector.frames_per_batch=1024", "1008 or 1056"),
    # environments
    ("env.id=Hoper-v5", "env.id=Hoper-v5", "Did you mean Hopper-v5?"),
    ("env.id=nowhere_to_find:Env-v0", "env.id", "cannot be imported"),
    # interpolations and syntax
    ("loss.gamma=${nowhere}", "loss.gamma", "nowhere"),
    ("loss.gamma=${oc.env:RLEXP_NOT_SET}", "loss.gamma", "RLEXP_NOT_SET"),
    ("no_equals_sign", "no_equals_sign", "cannot be read as key=value"),
    ("loss.gamma=[1", "loss.gamma=[1", "cannot be read as key=value"),
    # targets
    ("loss._target_=rlexp.losses.ClipPPOO", "loss._target_", "has no 'ClipPPOO'. Did you mean ClipPPOConfig?"),
    ("loss._target_=rlexp.lossess.ClipPPOConfig", "loss._target_", "cannot be imported"),
    (
        "loss._target_=rlexp.optim.AdamConfig",
        "loss._target_=rlexp.optim.AdamConfig",
        "not a kind of rlexp.losses.LossConfig",
    ),
    (f"{NET}, depht: 2}}", "policy.actor_network.depht", "Did you mean depth?"),
    ("callbacks.mine._target_=nowhere.Mine", "callbacks.mine._target_=nowhere.Mine", "cannot be imported"),
    ("optim.schedule={_target_: torch.optim.lr_scheduler.StepLR, step: 3}", "optim.schedule.step", "step_size"),
    (
        "callbacks.mine._target_=__main__.Mine",
        "callbacks.mine._target_=__main__.Mine",
        "move it from yours into a module",
    ),
    ("env.transforms.a={_target_: torchrl.envs.StepCount}", "env.transforms.a._target_", "Did you mean StepCounter?"),
    (
        " ".join([*LOSS, "loss.loss_module.clip_epsilom=0.1"]),
        "loss.loss_module.clip_epsilom",
        "Did you mean clip_epsilon?",
    ),
    (" ".join([*LOSS, "loss.loss_module.entropy_coef=0.1"]), "loss.loss_module.entropy_coef", "mean entropy_coeff?"),
]


@pytest.mark.parametrize(("override", "key", "remedy"), WRONG, ids=[override for override, *_ in WRONG])
def test_wrong_command_line_is_named_with_its_remedy(
    override: str, key: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        pytest.fail("an environment was built")

    monkeypatch.setattr(gymnasium, "make", build)
    overrides = [override] if "{" in override else override.split(" ")
    with pytest.raises(ConfigError) as caught:
        check_targets(load_config(overrides))
    (problem,) = caught.value.problems
    assert str(problem).startswith(key)
    assert remedy in str(problem)


def test_all_problems_are_reported_together() -> None:
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


def test_configs_that_are_not_the_users_own_import_only_what_is_trusted(tmp_path: Path) -> None:
    values = load_config(["logger=none"]).to_dict()
    read_config(values, trust=[])
    hostile = {
        "policy": {"_target_": "os.system"},
        "callbacks": {"a": {"_target_": "subprocess.Popen", "args": ["touch", str(tmp_path / "ran")]}},
        "loss": {**load_config(LOSS).to_dict()["loss"], "loss_module": {"_target_": "torch.load", "f": "evil.pt"}},
        "env": {**values["env"], "id": "antigravity:Env-v0"},
    }
    with pytest.raises(ConfigError) as caught:
        read_config(values | hostile, trust=["acme"])
    blocked = {p.key: p.message for p in caught.value.problems}
    assert set(blocked) == {"policy._target_", "callbacks.a._target_", "loss.loss_module._target_", "env.id"}
    assert all("is blocked" in message for message in blocked.values())
    assert "antigravity" not in sys.modules
    read_config(values | {"callbacks": {"a": {"_target_": "fractions.Fraction"}}}, trust=["fractions"])


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
    (tmp_path / "probe.py").write_text(
        "import sys\nfrom rlexp.cli.train import main\n"
        "for argument in ('--help', 'loss.gamma=7', 'env.id=Hoper-v5'):\n"
        "    sys.argv = ['rlexp-train', argument]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code, sorted({'torch', 'torchrl', 'wandb'} & sys.modules.keys()))\n"
    )
    done = run_command(Path(sys.executable).name, "probe.py", cwd=tmp_path, cold=True)
    assert [line for line in done.stdout.splitlines() if line.endswith("[]")] == ["0 []", "2 []", "2 []"]


def test_help_names_groups_and_options(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "inverted_double_pendulum" in done.stdout
    assert "loss.clip_epsilon" in done.stdout


def test_unbuildable_parts_are_config_errors(tmp_path: Path) -> None:
    discrete = run_command("rlexp-train", "env=gym", "env.id=CartPole-v1", "logger=none", cwd=tmp_path)
    assert discrete.returncode == 2
    assert "policy=categorical" in discrete.stderr
    transform = "env.transforms.mine={_target_: torchrl.envs.StepCounter, max_stepz: 3}"
    for override, reported in {
        transform: r"Did you mean max_steps\?",
        "~env.transforms.reward_sum": r"must hold a torchrl\.envs\.RewardSum",
    }.items():
        with pytest.raises(ConfigError, match=reported):
            call_command("rlexp-train", "logger=none", override, cwd=tmp_path)
    assert not list(tmp_path.glob("outputs/*/*"))
