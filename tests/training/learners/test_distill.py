"""Distillation: what the teacher says, what the student reads, exact resume, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import composed

from rlexp import Trainer, load_policy
from rlexp.config import ConfigError
from rlexp.envs.raw_observations import RAW
from rlexp.runs import checkpoint
from rlexp.runs.errors import CheckpointError
from rlexp.training.learners import DistillLearner

SMALL = [
    *("env=gym", "env.num_envs=4", "env.num_workers=1", "env.init_random_steps=30", "env.max_episode_steps=20"),
    *("collector.frames_per_batch=64", "minibatch_size=32", "num_epochs=2", "total_frames=256", "policy.num_cells=[6]"),
    *("evaluation.episodes=2", "evaluation.interval=1000", "checkpoint.interval=64", "logger=none", "threads=1"),
    *("device=cpu", "optim.lr=1e-2"),
]
ENTRIES = ["env.id=rlexp.envs.partial:CartPoleEntries-v1", "env.name=entries"]
PENDULUM = ["env.id=Pendulum-v1", "env.name=pendulum"]
GRU = ["policy=gru", "policy.sequence_length=8", "policy.hidden_size=6"]
POSITIONS = ["policy.actor_keys=[positions]", "policy.critic_keys=[positions]"]
TEACHERS = {
    "cartpole": [*ENTRIES, "policy=categorical"],
    "pendulum": [*PENDULUM, "policy=normal"],
    "recurrent": [*ENTRIES, *GRU],
    "skipping": [*ENTRIES, "policy=categorical", "env.frame_skip=2"],
    "masked": ["env.id=choosing:Choosing-v0", "env.kwargs.mask=entry", "policy=categorical"],
    "stacking": [
        *("env.id=Pendulum-v1", "policy=normal", "kernels=false"),
        "+env.transforms.stack={_target_: torchrl.envs.CatFrames, N: 2, dim: -1, in_keys: [observation]}",
    ],
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers that have learned nothing and act in very different ways in different states."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, (name, overrides) in enumerate(TEACHERS.items()):
        trainer = Trainer(composed(*SMALL, f"seed={seed}", *overrides), folder / name)
        with torch.no_grad():
            trainer.learner.weights.add_(torch.randn_like(trainer.learner.weights), alpha=0.7)
        trainer.save()
        trainer.close()
    return folder


def student_of(folder: Path, teacher: Path, *overrides: str) -> Trainer:
    return Trainer(composed(*SMALL, "loss=distill", f"loss.teacher={teacher}", *overrides), folder)


def learner_of(trainer: Trainer) -> DistillLearner:
    assert isinstance(trainer.learner, DistillLearner)
    return trainer.learner


def logits(path: Path, observation: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Those of a checkpoint's policy for raw observations, from its tensors alone."""
    state = checkpoint.load(path).state
    (loc,), (scale,) = ([v for k, v in state.transforms.items() if k.endswith(name)] for name in (".loc", ".scale"))
    x: np.ndarray[Any, Any] = ((observation - loc.numpy()) / scale.numpy()).clip(-10, 10)
    layers = [tensor.numpy().astype(np.float64) for tensor in state.actor.values() if tensor.dim()]
    for i, (weight, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        x = x @ weight.T + bias
        x = np.tanh(x) if i < len(layers) // 2 - 1 else x
    return x


def test_the_teacher_speaks_of_raw_observations_by_its_own_statistics(teachers: Path, tmp_path: Path) -> None:
    trainer = student_of(tmp_path / "student", teachers / "cartpole", *ENTRIES, *GRU, *POSITIONS)
    batch = trainer.collect()
    learner_of(trainer).teacher.label(batch)
    raw = torch.cat([batch[RAW, "positions"], batch[RAW, "velocities"]], -1).double().numpy()
    np.testing.assert_allclose(
        batch["teacher_logits"].numpy(), logits(teachers / "cartpole", raw), rtol=1e-4, atol=1e-4
    )
    policy = load_policy(teachers / "cartpole")
    acted = policy({key: batch[RAW, key] for key in ("positions", "velocities")})
    assert torch.equal(acted, batch["teacher_logits"].argmax(-1))
    assert 0.1 < acted.double().mean() < 0.9
    trainer.close()


def test_a_student_learns_from_what_it_does_not_read(teachers: Path, tmp_path: Path) -> None:
    constant = ["num_epochs=8", "optim.schedule=constant"]
    trainer = student_of(tmp_path / "student", teachers / "cartpole", *ENTRIES, *GRU, *POSITIONS, *constant)
    assert "velocities" not in {*trainer.networks.actor.in_keys, *trainer.networks.critic.in_keys}
    batch = trainer.collect()
    rows = [trainer.update(batch) for _ in range(12)]
    trainer.save()
    trainer.close()
    assert rows[-1]["loss/objective"] < 0.7 * rows[0]["loss/objective"]
    assert rows[-1].keys() >= {"loss/critic", "loss/kl", "loss/entropy", "optim/grad_norm", "train/lr"}
    # A checkpoint's environment is built without raw observations, and its policy reads the positions alone.
    assert load_policy(tmp_path / "student").shapes.keys() == {"positions"}


def test_a_squared_distance_takes_the_means_to_the_teachers_and_leaves_the_deviations(
    teachers: Path, tmp_path: Path
) -> None:
    trainer = student_of(
        tmp_path, teachers / "pendulum", *PENDULUM, "policy=tanh_normal", "loss.distance=l2", "loss.critic_coeff=0"
    )
    scale = dict(trainer.networks.actor.named_parameters())
    (name,) = [key for key in scale if key.endswith("state_independent_scale")]
    before = scale[name].detach().clone()
    critic = [p.detach().clone() for p in trainer.networks.critic.parameters()]
    rows = list(trainer)
    trainer.close()
    assert rows[-1]["loss/objective"] < rows[0]["loss/objective"]
    assert torch.equal(scale[name], before)
    assert all(torch.equal(a, b) for a, b in zip(critic, trainer.networks.critic.parameters(), strict=True))


@pytest.mark.parametrize(
    ("teacher", "overrides"),
    [
        ("cartpole", [*ENTRIES, *GRU, *POSITIONS]),
        ("pendulum", [*PENDULUM, "policy=normal", "kernels=false", "loss.normalize_value=true"]),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    teachers: Path, tmp_path: Path, teacher: str, overrides: list[str]
) -> None:
    """Also where its teacher lies elsewhere by then; another teacher is refused."""
    here = Path(shutil.copytree(teachers / teacher, tmp_path / "teacher"))
    whole = student_of(tmp_path / "whole", here, *overrides)
    rows = list(whole)
    whole.close()
    part = student_of(tmp_path / "part", here, *overrides)
    assert [part.iterate(), part.iterate()] == rows[:2]
    part.save()
    part.close()
    moved = here.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"loss.teacher=.*\n.*is not there"):
        Trainer.resume(tmp_path / "part")
    other = Path(shutil.copytree(teachers / teacher, tmp_path / "other"))
    again = Trainer(composed(*SMALL, *TEACHERS[teacher], "seed=9"), tmp_path / "again")
    again.save()
    again.close()
    with pytest.raises(ConfigError, match=r"loss.teacher=.*\n.*holds another teacher, of 0 frames"):
        Trainer.resume(tmp_path / "part", [f"loss.teacher={tmp_path / 'again'}"])
    resumed = Trainer.resume(tmp_path / "part", [f"loss.teacher={moved if teacher == 'cartpole' else other}"])
    assert list(resumed) == rows[2:]
    assert torch.equal(resumed.learner.weights, whole.learner.weights)
    resumed.close()
    assert not checkpoint.load(tmp_path / "part").state.inexact


def test_ppo_goes_on_from_a_student(teachers: Path, tmp_path: Path) -> None:
    overrides = [*ENTRIES, *GRU, *POSITIONS]
    student = student_of(tmp_path / "student", teachers / "cartpole", *overrides)
    student.iterate()
    student.save()
    student.close()
    ppo = Trainer(composed(*SMALL, *overrides, f"warm_start={tmp_path / 'student'}"), tmp_path / "ppo")
    assert torch.equal(ppo.learner.weights, student.learner.weights)
    for ours, theirs in zip(ppo.env.transform.state_dict().values(), states(student), strict=True):
        assert torch.equal(ours, theirs)
    assert RAW not in ppo.collect()
    ppo.close()


def states(trainer: Trainer) -> Sequence[torch.Tensor]:
    return [value for value in trainer.env.transform.state_dict().values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(
    ("teacher", "overrides", "reported"),
    [
        (
            "cartpole",
            ["env.id=CartPole-v1", "policy=categorical"],
            r"reads positions \[2\], .* observes observation \[4\]",
        ),
        (
            "cartpole",
            ["env.id=Acrobot-v1", "policy=categorical"],
            "acts by actions that are discrete, one of 2, and .* 3",
        ),
        (
            "pendulum",
            ["env.id=MountainCarContinuous-v0"],
            r"acts by .*from \[-2.0\] to \[2.0\], and .* \[-1.0\] to \[1.0\]",
        ),
        ("recurrent", [*ENTRIES, "policy=categorical"], "is recurrent: only a feed-forward policy"),
        ("skipping", [*ENTRIES, "policy=categorical"], "trained with env.frame_skip=2, and here it is 1"),
        ("masked", ["env.id=choosing:Choosing-v0", "policy=categorical"], "action masks, and this .* none"),
        ("stacking", [*PENDULUM, "policy=normal"], "CatFrames|depends on earlier steps"),
        (
            "pendulum",
            [*PENDULUM, "policy=tanh_normal"],
            r"distance=kl\n.*IndependentNormal to this policy's TanhNormal",
        ),
        ("cartpole", [*ENTRIES, "policy=categorical", "loss.distance=l2"], r"distance=l2\n.*choices: kl"),
        ("nowhere", [*PENDULUM], "is not there: name a run's folder or a checkpoint"),
        ("pendulum", [*PENDULUM, "loss.average_gae=true"], r"average_gae=true\n.*has no meaning with this loss"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in TEACHERS else "",
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_collected(
    teachers: Path, tmp_path: Path, teacher: str, overrides: list[str], reported: str
) -> None:
    with pytest.raises(ConfigError, match=reported):
        student_of(tmp_path / "student", teachers / teacher, *overrides)
    assert not (tmp_path / "student").exists()


def test_a_damaged_teacher_is_named(teachers: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(teachers / "pendulum", tmp_path / "teacher"))
    (found,) = copy.glob("checkpoints/*/tensors.safetensors")
    found.write_bytes(found.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        student_of(tmp_path / "student", copy, *PENDULUM, "policy=normal")


def test_a_strangers_teacher_runs_no_code(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlexp.runs import manifest

    copy = Path(shutil.copytree(teachers / "pendulum", tmp_path / "teacher"))
    (path,) = copy.glob("checkpoints/*/manifest.json")
    entries = json.loads(path.read_text())
    entries["config"]["policy"]["actor_network"] = {"_target_": "evil.f"}
    del entries["sha256"]
    path.write_text(json.dumps(entries | {"sha256": manifest._digest(entries)}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"its policy.actor_network(.|\n)*is blocked.*say loss.trust=\[evil\]"):
        student_of(tmp_path / "student", copy, *PENDULUM, "policy=normal")
    assert not (tmp_path / "executed").exists()
