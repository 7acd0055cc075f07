"""Environments of other kinds: dm_control, pixels, any of torchrl's; what each trains with and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from bodies import Bodies
from commands import TINY, call_command, rows_of, run_command
from gymnasium.envs.registration import EnvSpec
from slider import Slider
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded
from torchrl.envs import (
    BraxWrapper,
    Compose,
    EnvBase,
    PendulumEnv,
    StepCounter,
    TransformedEnv,
    VecNorm,
    VecNormV2,
)
from torchrl.envs.utils import check_env_specs

from rlexp import Trainer, load_config
from rlexp.agent import Agent
from rlexp.agent.evaluation import evaluate, evaluation_seeds
from rlexp.collectors.sync import SyncCollector
from rlexp.config import ConfigError
from rlexp.envs.torchrl import batched
from rlexp.runs import checkpoint

SWINGUP = ["env=dm_control", "env.domain=cartpole", "env.task=swingup"]
PENDULUM = ["env=torchrl", "env.make._target_=torchrl.envs.GymEnv", "env.make.env_name=Pendulum-v1"]
SHORT = [*TINY, "total_frames=256", "num_epochs=1", "evaluation.episodes=2", "logger=none"]


@pytest.mark.parametrize(
    ("overrides", "policy"),
    [
        (["env=cartpole"], "CategoricalConfig"),
        (["env=pendulum", "env.max_episode_steps=50"], "TanhNormalConfig"),
        ([*SWINGUP, "env.max_episode_steps=50"], "TanhNormalConfig"),
        ([*PENDULUM, "env.transforms.step_counter.max_steps=50"], "TanhNormalConfig"),
    ],
    ids=["cartpole", "pendulum", "dm_control", "torchrl"],
)
def test_it_trains_and_is_evaluated_again_to_the_digit(overrides: list[str], policy: str, tmp_path: Path) -> None:
    config = load_config([*SHORT, *overrides])
    assert type(config.policy).__name__ == policy
    summary = Trainer.from_config(config, tmp_path / "run").fit()
    agent = Agent(tmp_path / "run")
    again = evaluate(agent.env, agent.networks.actor, evaluation_seeds(config.seed, config.evaluation.episodes))
    assert again.mean_return == summary["final"]["eval/return"]


def test_pixels_train_a_convolutional_policy(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    small = ["policy.channels=[4,4,4]", "policy.num_cells=[16]", "env.max_episode_steps=20", "total_frames=256"]
    pixels = ["env=cartpole", "env.from_pixels=true", "env/transforms=none", "policy=cnn", *small]
    assert Trainer.from_config(load_config([*SHORT, *pixels]), tmp_path / "run").fit()["status"] == "completed"


def test_an_explicit_policy_wins_over_the_one_an_environment_names() -> None:
    assert type(load_config(["env=cartpole", "policy=gru"]).policy).__name__ == "GRUConfig"


def test_frames_are_skipped_behind_the_camera() -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    pixels = ["env=cartpole", "env.from_pixels=true", "env/transforms=none", "env.pixels.size=32"]
    once, twice = (load_config([*pixels, f"env.frame_skip={skip}"]).env.build_base(1) for skip in (1, 2))
    push = torch.ones(1, dtype=torch.int64)
    seen = []
    for env, pushes in ((once, 4), (twice, 2)):
        env.set_seeds([3])
        tensordict = env.reset()
        rewards = []
        for _ in range(pushes):
            tensordict = env.step(tensordict.set("action", push))["next"]
            rewards.append(tensordict["reward"].item())
        seen.append(tensordict["observation"][0])
        assert sum(rewards) == 4
    # The same instants: every second image of the one is every image of the other.
    assert torch.equal(seen[0][[1, 3]], seen[1][[2, 3]])
    assert seen[0].dtype is torch.uint8
    assert not torch.equal(seen[0][1], seen[0][3])


def test_images_of_a_simulators_own_are_not_drawn_again() -> None:
    cv2, _ = (pytest.importorskip(name, reason="an extra is not installed") for name in ("cv2", "Box2D"))
    env, plain = load_config(["env=car_racing"]).env.build_base(1), gymnasium.make("CarRacing-v3")
    env.set_seeds([3])
    tensordict, (image, _) = env.reset(), plain.reset(seed=3)
    action = torch.tensor([[0.1, 0.5, 0.0]])
    images = [image, image]
    for _ in range(3):
        tensordict = env.step(tensordict.set("action", action))["next"]
        (_, first, *_), (image, second, *_) = (plain.step(action[0].numpy()) for _ in range(2))
        images.append(image)
        assert tensordict["reward"].item() == float(first) + float(second)
        colours = [cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images[-2:]]
        gray = (np.stack(colours) * [0.2125, 0.7154, 0.0721]).sum(-1)
        # Whole numbers, by truncation, of sums in another order.
        assert np.abs(tensordict["observation"][0].numpy() - gray).max() <= 1


class ChannelsFirst(gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """Images as a convolution reads them; what it draws is black."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (3, 84, 84), np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (3, 84, 84), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros((3, 84, 84), np.uint8), 0.0, True, False, {}

    def render(self) -> Any:
        return np.zeros((84, 84, 3), np.uint8)


class WithImage(ChannelsFirst):
    """An image among others, which cannot be drawn."""

    observation_space = gymnasium.spaces.Dict(
        {"image": ChannelsFirst.observation_space, "speed": gymnasium.spaces.Box(-1, 1, (1,), np.float32)}
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        image, info = super().reset(seed=seed)
        return {"image": image, "speed": np.zeros(1, np.float32)}, info

    def render(self) -> Any:
        raise ValueError


def test_images_whose_channels_come_first_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="the extra rlexp[pixels] is not installed")
    for kind in (ChannelsFirst, WithImage):
        id = f"{kind.__name__}-v0"
        monkeypatch.setitem(gymnasium.registry, id, EnvSpec(id, entry_point=kind, max_episode_steps=9))
    env = load_config(["env=gym", "env.id=ChannelsFirst-v0", "env.from_pixels=true"]).env.build_base(1)
    env.set_seeds([3])
    seen = env.reset()["observation"][0, -1].numpy()
    image, _ = gymnasium.make("ChannelsFirst-v0").reset(seed=3)
    gray = (image.transpose(1, 2, 0) * [0.2125, 0.7154, 0.0721]).sum(-1)
    assert np.abs(seen - gray).max() <= 1
    with pytest.raises(ConfigError, match=r"cannot be rendered here: ValueError\(\)\.") as raised:
        load_config(["env=gym", "env.id=WithImage-v0", "env.from_pixels=true"]).env.build_base(1)
    assert "MuJoCo" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (
            ["env=cartpole", "env.from_pixels=true", "env/transforms=frozen"],
            r"observation_norm(.|\n)*env/transforms=none",
        ),
        (["env=hopper", "env.from_pixels=true", "env/transforms=none", "env.backend=envpool"], "renders no images"),
        (["env=dm_control", "env.domain=cartpol", "env.task=swingup"], "Did you mean cartpole"),
        (["env=dm_control", "env.domain=cartpole", "env.task=swing"], "Did you mean swingup"),
        (["env=dm_control", "env.domain=lqr", "env.task=lqr_2_1"], r"env\.max_episode_steps(.|\n)*is needed"),
        (["env=dm_control", "env.task=run"], r"env\.domain(.|\n)*has no value yet"),
        (["env=torchrl"], r"env\.make\._target_(.|\n)*has no value yet"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(overrides: list[str], reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        load_config(overrides)


def test_entries_of_a_torchrl_environment_stay_apart() -> None:
    env = batched(Bodies, 3, 3)
    check_env_specs(env)
    steps = env.rollout(2)
    assert (steps["position"][0, 0].tolist(), steps["speed"][0, 0].item()) == ([8, 8], 5)
    assert "observation" not in steps.keys()  # noqa: SIM118 - no dictionary


BODIES = [
    *("env=torchrl", "env.make._target_=bodies.Bodies", "env.make.size=[4]", "env.num_envs=4"),
    *("env.transforms.step_counter.max_steps=10", "evaluation.episodes=6", "logger=none", "env.init_random_steps=8"),
    *("collector.frames_per_batch=64", "minibatch_size=32", "total_frames=64", "num_epochs=1"),
]


def test_what_the_actor_reads_of_a_torchrl_environment_is_named_and_not_guessed() -> None:
    groups = [*BODIES, "env.make.actor=[2]", "env.make.critic=[3]"]
    config = load_config(groups)
    cpu = torch.device("cpu")
    reported = r"policy\.actor_keys(.|\n)*observes actor \[2\], critic \[3\](.|\n)*\[actor\], or all, \[actor,critic\]"
    with pytest.raises(ConfigError, match=reported):
        config.policy.build(config.env.build(4), cpu)
    chosen = load_config([*groups, "policy.actor_keys=[actor]"]).policy.build(config.env.build(4), cpu)
    assert (list(chosen.actor.in_keys), list(chosen.critic.in_keys)) == (["actor"], ["actor", "critic"])


def test_flattened_the_vectors_of_a_torchrl_environment_become_one() -> None:
    env = batched(Bodies, 3, 3, flatten=True)
    check_env_specs(env)
    assert env.rollout(2)["observation"][0, 0].tolist() == [8, 8, 5]  # position, then speed
    with pytest.raises(ConfigError, match=r"env\.flatten=true(.|\n)*pixels \[3, 4, 4\](.|\n)*env\.flatten=false"):
        batched(lambda: Bodies(pixels=[3, 4, 4], speed=[1]), 1, 1, flatten=True)


def test_an_entry_that_is_called_observation_is_what_is_read() -> None:
    config = load_config([*BODIES, "env.make.observation=[2]", "env.make.state=[3]"])
    networks = config.policy.build(config.env.build(4), torch.device("cpu"))
    assert (list(networks.actor.in_keys), list(networks.critic.in_keys)) == (["observation"], ["observation"])


def test_one_observation_of_any_shape_is_renamed() -> None:
    env = batched(lambda: Bodies(pixels=[3, 4, 4]), 2, 2)
    check_env_specs(env)
    assert env.reset()["observation"].shape == (2, 3, 4, 4)


def test_a_batch_by_itself_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = [*BODIES, "policy.actor_keys=[speed]"]
    summary = Trainer.from_config(load_config(target), tmp_path / "run").fit()
    assert (summary["final"]["eval/return"], summary["final"]["eval/episode_length"]) == (10, 10)
    with pytest.raises(ConfigError, match=r"env\.num_envs=2(.|\n)*must be the environment's own batch size, \[4\]"):
        load_config([*target, "env.num_envs=2"]).env.build(2)


def test_a_batch_by_itself_is_not_multiplied_by_workers(tmp_path: Path) -> None:
    target = [*BODIES, "policy.actor_keys=[speed]", "collector=multi_sync", "collector.num_workers=2"]
    with pytest.raises(ConfigError, match=r"collector\.num_workers\n *each worker makes 4 simulators, and 2 are"):
        Trainer.from_config(load_config(target), tmp_path / "run")


def test_torchrls_own_dm_control_is_made() -> None:
    make = ["env.make._target_=torchrl.envs.DMControlEnv", "env.make.env_name=cartpole", "env.make.task_name=swingup"]
    env = load_config(["env=torchrl", *make, "env.flatten=true", "env.num_envs=1"]).env.build_base(1)
    assert env.rollout(3)["observation"].shape == (1, 3, 5)
    env.close()


def test_what_an_environment_counts_itself_may_have_the_names_of_transforms() -> None:
    env = batched(lambda: TransformedEnv(Bodies(), StepCounter()), 2, 2)
    assert env.rollout(2)["next", "step_count"].flatten().tolist() == [1, 2, 1, 2]


def test_evaluation_counts_the_environments_own_rewards() -> None:
    clip = "env.transforms.clip={_target_: torchrl.envs.RewardClipping, clamp_min: 0, clamp_max: 0.5}"
    config = load_config([
        *("env=torchrl", "env.make._target_=bodies.Bodies", "env.transforms.step_counter.max_steps=10", clip),
        "env/transforms=none", "policy.actor_keys=[position]",
    ])  # fmt: skip
    env = config.env.build(2)
    actor = config.policy.build(env, torch.device("cpu")).actor
    assert env.rollout(3)["next", "reward"].unique().tolist() == [0.5]
    assert evaluate(env, actor, [1, 2]).returns == [10, 10]


class Costly(Bodies):
    """Rewards with two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.reward_spec = Unbounded(2)


class Counting(Bodies):
    """Rewards in whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.reward_spec = Unbounded(1, dtype=torch.int64)


class Buffered(Slider):
    """One that writes each step into the tensors of the step before."""

    def _entries(self, **entries: torch.Tensor) -> TensorDict:
        found = super()._entries(**entries)
        self.buffers_of = getattr(self, "buffers_of", {})
        for key, value in found.items():
            found[key] = self.buffers_of.setdefault(key, value.clone()).copy_(value)
        return found


def test_a_batch_that_writes_into_the_same_tensors_gives_each_steps_own() -> None:
    seen = []
    for kind in (Slider, Buffered):
        env = batched(lambda kind=kind: kind(2), 1, 2)  # type: ignore[misc]
        env.set_seed(0)
        steps = env.rollout(5, policy=lambda td: td.set("action", torch.full((2, 2), 0.5)))
        seen.append(steps["observation"])
    assert torch.equal(*seen)
    assert len(seen[0].unique()) > 3


CAR = "env.make={_target_: torchrl.envs.GymEnv, env_name: MountainCarContinuous-v0}"
SLIDES = "env.make={_target_: slider.Slider, num_envs: 2}"


@pytest.mark.parametrize(("make", "reward"), [(CAR, -0.1), (SLIDES, 1 - 2 * 0.4**2)], ids=["copies", "batch"])
def test_actions_are_clipped_where_the_simulators_receive_them(make: str, reward: float) -> None:
    """A step by 3 is one by 1, of which both rewards tell; the batch keeps the 3."""
    env = load_config(["env=torchrl", "env.num_envs=2", "env/transforms=none", make]).env.build(2)
    stepped = env.step(env.reset().set("action", env.action_spec.one() * 3))
    assert stepped["action"].unique().tolist() == [3]
    assert stepped["next", "reward"].flatten().tolist() == pytest.approx([reward, reward])
    env.close()


@pytest.mark.parametrize("collector", ["sync", "device"])
def test_a_batch_keeps_the_actions_of_the_policy_and_has_the_steps_of_clipped_ones(
    collector: str, tmp_path: Path
) -> None:
    overrides = ["env=torchrl", SLIDES, "env/transforms=none", "policy=normal", f"collector={collector}"]
    trainer = Trainer.from_config(load_config([*SHORT, *overrides, "env.num_envs=2"]), tmp_path)
    batch = next(iter(trainer.collector))
    moved = (batch["next", "observation"] - batch["observation"]) / 0.9
    assert batch["action"].abs().max() > 1.5
    torch.testing.assert_close(moved.float(), batch["action"].clamp(-1, 1))
    trainer.close()


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda: torch.nn.Tanh(), "gives a Tanh, which is no torchrl environment"),
        (lambda: Bodies(scale=[1], position=[2]), "observes scale, which is a name of rlexp's own"),
        (lambda: Bodies(alpha=[1], beta=[2], speed=[1]), "observes alpha, beta, which are names"),
        (lambda: TransformedEnv(Bodies(), VecNorm(in_keys=["speed"])), "has VecNorm among its transforms"),
        (
            lambda: TransformedEnv(TransformedEnv(Bodies(), Compose(VecNormV2(in_keys=["speed"]))), StepCounter()),
            "has VecNorm",
        ),
        (
            Costly,
            r"gives rewards of shape \[2\], and one number, \[1\], is needed(.|\n)*LineariseRewards",
        ),
        (Counting, r"gives rewards of type torch\.int64, and torch\.float32 is needed"),
        (PendulumEnv, r"steps from entries of the tensordict that it is given \(.*params"),
    ],
)
def test_torchrl_environments_that_do_not_fit_are_refused(make: Any, reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        batched(make, 2, 2).reset()


class Vmapped(BraxWrapper):  # type: ignore[misc]
    """As far as torchrl makes it without Brax."""

    def __init__(self, *batch: int) -> None:
        EnvBase.__init__(self, batch_size=batch)
        self.action_spec, self.reward_spec = Unbounded((*batch, 1)), Unbounded((*batch, 1))
        self.observation_spec = Composite(observation=Unbounded((*batch, 1)), shape=batch)


def test_a_batch_whose_rows_are_reset_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resets all of its rows(.|\n)*Without env\.make\.batch_size"):
        batched(lambda: Vmapped(4), 4, 4)
    assert batched(Vmapped, 1, 1).num_workers == 1


def test_a_torchrl_environment_is_collected_by_torchrls_collector(tmp_path: Path) -> None:
    trainer = Trainer.from_config(load_config([*SHORT, *PENDULUM]), tmp_path)
    assert type(trainer.collector) is SyncCollector
    trainer.close()


def test_a_checkpoint_reports_that_its_resume_is_not_exact(tmp_path: Path) -> None:
    limit = "env.transforms.step_counter.max_steps=30"
    Trainer.from_config(load_config([*SHORT, *PENDULUM, limit]), tmp_path / "run").fit()
    assert checkpoint.load(tmp_path / "run").state.inexact == ["SerialEnv cannot give its simulators' state"]
    assert Trainer.resume(tmp_path / "run", ["total_frames=512"]).fit()["frames"] == 512


def test_specs_are_shown_as_the_tutorial_shows_them(tmp_path: Path) -> None:
    done = run_command("rlexp-config", "show", "env=hopper", "env.num_envs=2", "--specs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = ["normalization constant shape: torch.Size([11])", "observation_spec:", "reward_spec:", "input_spec:"]
    parts += ["\naction_spec:", "check_env_specs: passed", "rollout of three steps:"]
    parts += ["Shape of the rollout TensorDict: torch.Size([2, 3])"]
    places = [done.stdout.index(part) for part in parts]
    assert places == sorted(places)
    with pytest.raises(ConfigError, match="Did you mean hopper"):
        call_command("rlexp-config", "show", "env=hoper", "--specs", cwd=tmp_path)


def test_what_a_function_of_ones_own_makes_trains_resumes_and_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def make_env():\n    from torchrl.envs import GymEnv\n    return GymEnv('Pendulum-v1')\n"
    )
    env = ["env=torchrl", "env.make._target_=mine.make_env", "env.name=mine"]
    options = [*TINY, *env, "env.transforms.step_counter.max_steps=20", "logger=none", "hydra.run.dir=run"]
    for name, arguments in (
        ("rlexp-train", [*options, "total_frames=256"]),
        ("rlexp-train", ["resume=run", "total_frames=512", "trust=[mine]"]),
        ("rlexp-eval", ["checkpoint=run", "trust=[mine]", "episodes=1"]),
    ):
        assert call_command(name, *arguments, cwd=tmp_path) == 0
    assert [row["frames"] for row in rows_of(tmp_path / "run")] == [256, 512]
