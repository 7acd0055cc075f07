"""When and on what the evaluator evaluates, and which evaluation it calls the best."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from agents import composed
from commands import rows_of
from tensordict import TensorDict
from torchrl.envs import ObservationTransform

from rlexp import Trainer
from rlexp.agent import Agent
from rlexp.agent.evaluation import Evaluation, EvaluationError, evaluate, evaluation_seeds
from rlexp.collectors.share import share_seed
from rlexp.config import ConfigError
from rlexp.envs.normalization import observation_norms
from rlexp.report import load_runs
from rlexp.runs import checkpoint
from rlexp.training import evaluator as module
from rlexp.training.evaluator import passed
from rlexp.training.finite import TrainingError

SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=2", "minibatch_size=32", "num_epochs=1", "total_frames=256"),
    *("env.init_random_steps=16", "evaluation.interval=64", "evaluation.episodes=3", "logger=none", "threads=1"),
    *("policy.num_cells=[8]", "env.max_episode_steps=20", "seed=3"),
]


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_evaluation_is_the_policy_in_plain_gymnasium_under_the_statistics_of_the_moment(
    kernels: str, tmp_path: Path
) -> None:
    trainer = Trainer(
        composed(*SMALL, "env=hopper", "optim.lr=1e-2", "env.max_episode_steps=200", f"kernels={kernels}"), tmp_path
    )
    seen = []
    for _ in range(2):
        trainer.iterate()
        found = trainer.evaluator.final
        assert found is not None
        seen.append(found)
        (norm,) = observation_norms(trainer.env)
        returns, lengths = [], []
        for seed in found.seeds:
            env = gymnasium.make("Hopper-v5", max_episode_steps=200)
            observation, _ = env.reset(seed=seed)
            total, steps, ended = 0.0, 0, False
            while not ended:
                scaled = ((torch.from_numpy(observation) - norm.loc) / norm.scale).clamp(-10, 10).float()
                with torch.no_grad():
                    given = TensorDict({"observation": scaled[None]}, [1])
                    loc = trainer.networks.actor.get_dist_params(given)["loc"]
                observation, reward, terminated, truncated, _ = env.step(loc[0].tanh().numpy())
                total, steps, ended = total + float(reward), steps + 1, terminated or truncated
            returns.append(total)
            lengths.append(steps)
        assert found.lengths == lengths
        assert len(set(lengths)) > 1, "those that end first must wait for the others"
        assert found.returns == pytest.approx(returns, rel=1e-4)
    trainer.close()
    assert seen[0].seeds == seen[1].seeds == evaluation_seeds(3, 3)
    assert seen[0].returns != seen[1].returns


def test_evaluation_seeds_are_none_of_the_trainings() -> None:
    assert evaluation_seeds(3, 100) == evaluation_seeds(3, 101)[:100]
    assert not set(evaluation_seeds(3, 100)) & set(evaluation_seeds(4, 100))
    training = {int(s) for s in np.random.SeedSequence(3).generate_state(100)}
    assert not set(evaluation_seeds(3, 100)) & training
    assert not set(evaluation_seeds(3, 100)) & {share_seed(3, index) for index in range(100)}


@pytest.mark.parametrize("env", [[], ["env=gym", "env.id=drawing:Drawing-v0"]], ids=["own generators", "global ones"])
def test_evaluating_changes_nothing_of_the_training(env: list[str], tmp_path: Path) -> None:
    rows = {}
    for interval in (64, 10**6):
        trainer = Trainer(composed(*SMALL, *env, f"evaluation.interval={interval}"), tmp_path / str(interval))
        rows[interval] = [trainer.iterate() for _ in range(3)]
        trainer.close()
    assert "eval/return" in rows[64][0]
    for often, never in zip(rows[64], rows[10**6], strict=True):
        assert {key: value for key, value in often.items() if not key.startswith("eval/")} == never


def test_what_learns_in_each_process_by_itself_is_refused(tmp_path: Path) -> None:
    own = f"env.transforms.mean._target_={__name__}.Mean"
    workers = ["collector=multi_sync", "collector.num_workers=2"]
    with pytest.raises(ConfigError, match=r"Mean has buffers(.|\n)*collector=sync"):
        Trainer(composed(*SMALL, "env=pendulum", "env/transforms=none", own, *workers), tmp_path)


class Mean(ObservationTransform):  # type: ignore[misc, unused-ignore]
    """A running mean of a user's own, in a buffer, and a number for each simulator in another."""

    def __init__(self) -> None:
        super().__init__(in_keys=["observation"], out_keys=["observation"])
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("rows", torch.zeros(2))
        self.seen: list[list[float]] = []

    def _apply_transform(self, observation: Any) -> Any:
        self.seen.append(self.mean.tolist())
        if len(observation) == 2:
            self.mean += observation.mean(0)
        return observation - self.mean

    def _reset(self, tensordict: TensorDict, reset: TensorDict) -> TensorDict:
        return self._call(reset)


def test_what_a_transform_of_ones_own_has_learned_reaches_evaluation_and_agent(tmp_path: Path) -> None:
    own = f"env.transforms.mean._target_={__name__}.Mean"
    trainer = Trainer(composed(*SMALL, "env=pendulum", "env/transforms=none", own), tmp_path)
    trainer.iterate()
    learned = next(t for t in trainer.env.transform if isinstance(t, Mean)).mean
    used = next(t for t in trainer.evaluator.env.transform if isinstance(t, Mean))
    assert learned.any()
    assert learned.tolist() in used.seen
    path = trainer.save()
    trainer.close()
    agent = Agent(path, trust=[__name__.partition(".")[0]])
    assert torch.equal(next(t for t in agent.env.transform if isinstance(t, Mean)).mean, learned)
    agent.env.close()


def test_a_run_that_is_ended_where_it_stopped_is_evaluated_there(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "evaluation.interval=128", "checkpoint.interval=64"), tmp_path)
    for _ in range(3):
        trainer.iterate()
    trainer.save()
    earlier = trainer.evaluator.final
    trainer.close()
    resumed = Trainer.resume(tmp_path, ["total_frames=192"])
    assert resumed.evaluator.final == earlier
    summary = resumed.fit()
    assert (summary["status"], resumed.evaluator.final_frames) == ("completed", 192)
    assert resumed.evaluator.final != earlier


def test_that_evaluation_is_the_last_in_all_that_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [setting for setting in SMALL if setting != "logger=none"]
    trainer = Trainer(composed(*plain, "evaluation.interval=128", "logger=csv"), tmp_path)
    iterate = trainer.iterate

    def stopped() -> dict[str, float]:
        metrics = iterate()
        if trainer.frames == 192:
            trainer.stop()
        return metrics

    monkeypatch.setattr(trainer, "iterate", stopped)
    assert trainer.fit()["status"] == "stopped"
    before = rows_of(tmp_path)
    resumed = Trainer.resume(tmp_path, ["total_frames=192"])
    resumed.evaluator.best = resumed.evaluator.best_frames = None  # as where nothing was evaluated before
    final = resumed.fit()["final"]
    rows = rows_of(tmp_path)
    assert rows == [*before[:-1], before[-1] | final]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        copied = list(csv.DictReader(file))
    assert [float(row["frames"]) for row in copied] == [64, 128, 192]
    assert float(copied[-1]["eval/return"]) == final["eval/return"]
    (reported,) = load_runs([tmp_path])
    assert reported.final == final["eval/return"]
    assert (tmp_path / "checkpoints" / "best").read_text() == "000000000192"


def test_the_number_of_episodes_may_change_for_environments_of_ones_own(tmp_path: Path) -> None:
    Trainer(composed(*SMALL, "env=gym", "env.id=drawing:Drawing-v0", "total_frames=64"), tmp_path).fit()
    for episodes in (2, 5):
        overrides = [f"evaluation.episodes={episodes}", f"total_frames={64 * episodes}", "trust=[drawing]"]
        trainer = Trainer.resume(tmp_path, overrides)
        trainer.fit()
        assert trainer.evaluator.final is not None
        assert len(trainer.evaluator.final.returns) == episodes


@pytest.mark.parametrize(
    ("interval", "before", "frames", "expected"),
    [(100, 0, 99, False), (100, 50, 100, True), (100, 100, 150, False), (100, 199, 301, True), (None, 0, 10**9, False)],
)
def test_an_interval_is_passed_once_per_multiple(
    interval: int | None, before: int, frames: int, expected: bool
) -> None:
    assert passed(interval, before, frames) is expected


def test_it_is_due_by_its_interval_and_at_the_end(tmp_path: Path) -> None:
    trainer = Trainer(composed(*SMALL, "evaluation.interval=128", "total_frames=320"), tmp_path)
    assert ["eval/return" in row for row in trainer] == [False, True, False, True, True]
    trainer.close()


def test_the_best_is_the_first_of_the_highest_return_and_goes_into_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(composed(*SMALL), tmp_path / "run")
    returns = iter([[1.0, 3.0], [5.0, 5.0], [10.0, 0.0], [2.0, 2.0]])
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: Evaluation([1, 2], next(returns), [4, 4]))
    evaluator = trainer.evaluator
    for frames in (64, 128, 192, 256):
        evaluator.evaluate(trainer.env, frames)
    trainer.close()
    assert (evaluator.best_frames, evaluator.best) == (128, Evaluation([1, 2], [5.0, 5.0], [4, 4]))
    assert evaluator.final == Evaluation([1, 2], [2.0, 2.0], [4, 4])
    state = evaluator.state_dict()
    fresh = Trainer(composed(*SMALL), tmp_path / "fresh")
    fresh.evaluator.load_state_dict(state)
    fresh.close()
    assert (fresh.evaluator.best_frames, fresh.evaluator.best) == (128, evaluator.best)
    assert fresh.evaluator.final == evaluator.final


class Late(gymnasium.Env):  # type: ignore[misc, type-arg, unused-ignore]
    """Its reward is NaN from step 30 on, which no training episode reaches that is cut at 20 steps a batch."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(1, self.steps / 100, np.float32), 1.0 if self.steps < 30 else float("nan"), False, False, {}


gymnasium.register("Late-v0", Late, max_episode_steps=40)
LATE = [
    *("env=gym", "env.id=Late-v0", "env.num_envs=8", "env.init_random_steps=40", "collector.frames_per_batch=160"),
    *("minibatch_size=40", "num_epochs=1", "evaluation.episodes=2", "evaluation.interval=160", "logger=none"),
]


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_an_evaluation_that_is_not_finite_ends_the_run_and_keeps_what_was_trained(kernels: str, tmp_path: Path) -> None:
    overrides = [*LATE, "total_frames=320", f"kernels={kernels}"]
    with pytest.raises(TrainingError, match=r"evaluation reward is not finite .* seed \d+, at 160 frames"):
        Trainer(composed(*overrides), tmp_path).fit()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert [json.loads(line)["frames"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [160]
    saved = checkpoint.load(tmp_path)
    assert saved.state.frames == 160
    agent = Agent(saved)
    with pytest.raises(EvaluationError, match="seed 5"):
        evaluate(agent.env, agent.networks.actor, [5], kernels=kernels == "auto")
    agent.env.close()


@pytest.mark.parametrize("kernels", ["auto", "false"])
def test_an_episode_without_an_end_is_named(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlexp.agent.evaluation.LONGEST", 50)
    trainer = Trainer(
        composed("env=pendulum", "env.init_random_steps=20", "logger=none", f"kernels={kernels}"), tmp_path
    )
    with pytest.raises(EvaluationError, match=r"episode of seed 7 has not ended after 50 steps: give a time limit"):
        evaluate(trainer.env, trainer.networks.actor, [7], kernels=kernels == "auto")
    trainer.close()


def test_iterations_by_hand_end_with_the_failure_of_the_last_evaluation(tmp_path: Path) -> None:
    trainer = Trainer(composed(*LATE, "total_frames=160"), tmp_path)
    rows = iter(trainer)
    assert "eval/return" not in next(rows)
    with pytest.raises(TrainingError, match="evaluation reward is not finite"):
        next(rows)
    trainer.close()


def test_a_resumed_run_whose_last_evaluation_failed_evaluates_again(tmp_path: Path) -> None:
    for attempt in (Trainer(composed(*LATE, "total_frames=160"), tmp_path), None):
        with pytest.raises(TrainingError, match="evaluation reward is not finite"):
            (attempt or Trainer.resume(tmp_path, ["logger=none"])).fit()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
