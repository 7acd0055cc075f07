"""Atari games: the preprocessing against the bare emulator, the two backends against each other, lives, resuming."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from simulator_copies import assert_goes_on_exactly
from torchrl.collectors import Collector

from rlexp import Trainer, load_config
from rlexp.agent.evaluation import evaluate
from rlexp.config import ConfigError
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.gymnasium.lives import END_OF_LIFE, end_lives
from rlexp.experiment import ExperimentConfig
from rlexp.kernels.rollout import RolloutCollector
from rlexp.runs import checkpoint
from rlexp.training.state import state_of

CPU = torch.device("cpu")
BACKENDS = ["gymnasium", "envpool"]
# Three games of small images and a small network: batches of 240 agent steps, in which random play loses lives.
SMALL = [
    *("experiment=atari", "env.num_envs=3", "env.num_workers=1", "env.pixels.size=20", "env.max_episode_steps=60"),
    *("policy.channels=[4]", "policy.kernel_sizes=[8]", "policy.strides=[4]", "policy.num_cells=[16]"),
    *("collector.frames_per_batch=960", "minibatch_size=120", "num_epochs=1", "total_frames=3840"),
    *("evaluation.episodes=2", "logger=none", "threads=1", "device=cpu"),
]


def config(game: str, backend: str, *overrides: str) -> ExperimentConfig:
    pytest.importorskip("ale_py" if backend == "gymnasium" else "envpool", reason="an extra is not installed")
    return load_config([*SMALL, f"env.game={game}", f"env.backend={backend}", *overrides])


def play(env: ArrayEnv, actions: npt.NDArray[np.int64]) -> list[dict[str, npt.NDArray[Any]]]:
    """What comes of actions ``[steps, num_envs]``; games that end begin anew."""
    seen = []
    for action in actions:
        env.set_actions(action)
        env.step_arrays()
        arrays = env.arrays
        ended = arrays.terminated | arrays.truncated
        names = ("observation", "reward", "terminated", "truncated", "end_of_life")
        seen.append({name: getattr(arrays, name).copy() for name in names})
        # EnvPool fills what a game ends with in the middle of an action with an earlier frame: nothing reads it.
        seen[-1]["observation"][arrays.terminated] = 0
        env.reset_arrays(np.flatnonzero(ended).tolist())
        seen[-1]["first"] = arrays.observation[ended].copy()
    return seen


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_game_is_the_emulators_own(backend: str) -> None:
    """Skipped frames, the maximum over the last two of them, size, stack and FIRE, by the bare emulator."""
    ale_py, cv2 = (pytest.importorskip(name, reason="an extra is not installed") for name in ("ale_py", "cv2"))
    env = config(
        "breakout", backend, "env.noop_max=1", "env.pixels.stack=2", "env.max_episode_steps=999"
    ).env.build_base(1)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path("breakout"))
    buttons = ale.getMinimalActionSet()
    ale.act(ale_py.Action.FIRE)

    def image(*frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        resized: npt.NDArray[np.uint8] = cv2.resize(np.max(frames, 0), (20, 20), interpolation=cv2.INTER_AREA)
        return resized

    images = [image(ale.getScreenGrayscale())] * 2
    env.reset_arrays([0])
    assert np.array_equal(env.arrays.observation[0], images)
    lost, points = 0, 0.0
    for choice in np.random.default_rng(0).integers(len(buttons), size=150):
        lives, reward, pressed = ale.lives(), 0.0, [buttons[choice]]
        while pressed:
            button, frames = pressed.pop(), []
            for _ in range(4):
                reward += ale.act(button)
                frames.append(ale.getScreenGrayscale())
            images.append(image(*frames[-2:]))
            if ale.lives() < lives:
                lives, pressed = ale.lives(), [ale_py.Action.FIRE]
                lost += 1
        env.set_actions(np.array([choice]))
        env.step_arrays()
        assert np.array_equal(env.arrays.observation[0], images[-2:])
        assert env.arrays.reward[0] == reward
        points += reward
    env.close()
    assert lost > 1
    assert points > 0


@pytest.mark.parametrize("game", ["breakout", "asterix"])
def test_both_backends_are_the_same_game(game: str) -> None:
    """Up to the random frames at the start, of which there are none here. Breakout has FIRE, and Asterix has not."""
    seen = []
    for backend in BACKENDS:
        env = config(game, backend, "env.noop_max=1", "env.max_episode_steps=140").env.build_base(3)
        env.reset_arrays(range(3))
        actions = np.random.default_rng(0).integers(env.action_spec.space.n, size=(160, 3))
        seen.append(play(env, actions))
        env.close()
    for ours, theirs in zip(*seen, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert any(step["end_of_life"].any() for step in seen[0])
    assert any(step["truncated"].any() for step in seen[0])


def test_games_begin_with_up_to_so_many_frames_without_action() -> None:
    env = config("breakout", "gymnasium", "env.noop_max=4").env.build_base(3)
    env.set_seeds([1, 2, 3])
    starts = set()
    for _ in range(30):
        env.reset_arrays(range(3))
        starts |= {simulator.unwrapped.ale.getEpisodeFrameNumber() for simulator in env._simulators.envs}
    env.close()
    assert starts == {1, 2, 3, 4}  # FIRE is one of them


def test_a_sticky_action_is_repeated_and_a_seed_repeats_a_game() -> None:
    def images(probability: float, seed: int) -> npt.NDArray[Any]:
        env = config("pong", "gymnasium", f"env.repeat_action_probability={probability}", "env.noop_max=1").env
        with closing(env.build_base(3)) as games:
            games.set_seeds([seed] * 3)
            games.reset_arrays(range(3))
            steps = play(games, np.random.default_rng(0).integers(6, size=(20, 1)).repeat(3, 1))
        return np.stack([step["observation"] for step in steps], 1)

    sticky = images(0.25, 1)
    assert np.array_equal(sticky[0], sticky[1])
    assert not np.array_equal(sticky, images(0.25, 2))
    assert np.array_equal(images(0.0, 1), images(0.0, 2))


@pytest.mark.parametrize(("probability", "workers"), [(0.0, 1), (0.25, 2)])
def test_a_game_goes_on_exactly(probability: float, workers: int) -> None:
    sticky = [f"env.repeat_action_probability={probability}", f"env.num_workers={workers}"]
    assert_goes_on_exactly(config("breakout", "gymnasium", *sticky, "env.max_episode_steps=25").env)


@pytest.mark.slow
def test_envpools_buttons_are_the_emulators() -> None:
    """EnvPool does not tell which games have FIRE, nor where it is among their actions."""
    pytest.importorskip("ale_py", reason="the extra rlexp[atari] is not installed")
    from ale_py.env import AtariEnv

    from rlexp.envs.atari import games
    from rlexp.envs.envpool import WITHOUT_FIRE

    for game in games():
        env = AtariEnv(game, frameskip=1, obs_type="ram")
        actions = env.get_action_meanings()
        assert ("FIRE" not in actions) == (game in WITHOUT_FIRE)
        assert game in WITHOUT_FIRE or actions[1] == "FIRE" or env.ale.lives() < 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_torchrls_from_the_same_noise(backend: str) -> None:
    spec = config("breakout", backend)
    env = spec.env.build(3)
    torch.manual_seed(0)
    actor = spec.policy.build(env, CPU).actor
    env.set_seed(3)
    torch.manual_seed(1)
    ours = RolloutCollector(env, actor, 240, CPU).rollout()
    env.set_seed(3)
    settings = {"split_trajs": False, "storing_device": CPU, "trust_policy": True}
    theirs = Collector(
        *(env, actor), frames_per_batch=240, total_frames=-1, auto_register_policy_transforms=False, **settings
    )
    torch.manual_seed(1)
    expected = next(iter(theirs))
    for key in expected.keys(True, True):
        # One network call for the whole batch rounds otherwise than one a step, on some processors.
        digits = {"rtol": 1e-4, "atol": 1e-6} if key in ("logits", "action_log_prob") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours[key], expected[key].to(ours[key].dtype), msg=str(key), **digits)
    assert ours["observation"].dtype == torch.uint8
    assert ours["next", END_OF_LIFE].any()
    theirs.shutdown()


@pytest.mark.parametrize("backend", BACKENDS)
def test_returns_are_those_of_whole_games_and_rewards_signs(backend: str) -> None:
    spec = config("asterix", backend, "env.max_episode_steps=140")
    env = spec.env.build(3)
    env.set_seed(0)
    actor = spec.policy.build(env, CPU).actor
    points: list[npt.NDArray[Any]] = []
    step = env.base_env.step_arrays

    def watched() -> None:
        step()
        points.append(env.base_env.arrays.reward.copy())

    env.base_env.step_arrays = watched
    batch = RolloutCollector(env, actor, 450, CPU).rollout()
    own, after = torch.from_numpy(np.stack(points, 1)), batch["next"]
    assert own.max() > 1
    assert torch.equal(after["reward"][..., 0], own.sign().float())
    for row, rewards in zip(after, own, strict=True):
        ends = row["done"][:, 0].nonzero()[:, 0]
        games = torch.tensor_split(rewards, ends + 1)[: len(ends)]
        assert row["episode_reward"][ends, 0].tolist() == [game.sum().item() for game in games]
    assert after["done"].any()
    assert after[END_OF_LIFE].any()
    assert not (after[END_OF_LIFE] & after["done"]).any()

    points.clear()
    (evaluated,) = evaluate(env, actor, [5]).returns
    assert evaluated == np.stack(points, 1)[0].sum() > 1


def test_an_episode_ends_with_a_life_for_learning_alone(tmp_path: Path) -> None:
    with closing(Trainer(config("breakout", "gymnasium"), tmp_path)) as trainer:
        batch = trainer.collect()
        before = batch["next"].clone()
        trainer.update(batch)
    lost, after = before[END_OF_LIFE], batch["next"]
    assert lost.any()
    assert torch.equal(after["terminated"], before["terminated"] | lost)
    assert torch.equal(after["done"], before["done"] | lost)
    # The advantage of the step that lost a life knows nothing of the steps after it.
    value, reward = batch["state_value"], after["reward"]
    torch.testing.assert_close(batch["advantage"][lost], (reward - value)[lost])


def test_without_lives_a_batch_has_no_ends_of_them() -> None:
    spec = config("breakout", "gymnasium", "env.episodic_life=false")
    with closing(spec.env.build(3)) as env:
        batch = env.rollout(20)
    assert batch.get(END_OF_LIFE, None) is None
    before = batch.clone()
    end_lives(batch)
    assert (batch == before).all()


def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    spec = config("breakout", "gymnasium", "env.repeat_action_probability=0.25")
    with closing(Trainer(spec, tmp_path / "whole")) as whole:
        next(iter(whole))
        middle = checkpoint.load(checkpoint.save(tmp_path / "half" / "checkpoints", state_of(whole), {}, keep_last=2))
        expected = [next(iter(whole)) for _ in range(2)]
    assert (middle.state.inexact, middle.state.unverified) == ([], False)
    with closing(Trainer(spec, tmp_path / "half", middle)) as half:
        assert [next(iter(half)) for _ in range(2)] == expected


@pytest.mark.parametrize(("game", "meant"), [("brekout", "breakout"), ("SpaceInvaders", "space_invaders")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_game_is_refused_with_near_ones(backend: str, game: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"env\.game={game}(.|\n)*Did you mean {meant}"):
        config(game, backend)


def test_missing_packages_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("envpool", "envpool.atari.registration"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.delitem(sys.modules, "rlexp.envs.atari", raising=False)
    for backend, extra in {"auto": "atari", "gymnasium": "atari", "envpool": "envpool"}.items():
        with pytest.raises(ConfigError, match=rf"pip install 'rlexp\[{extra}\]'"):
            load_config([*SMALL, f"env.backend={backend}"])
