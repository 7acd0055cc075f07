"""A policy whose critic alone sees an entry: resumed, evaluated, used and exported without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from commands import TINY, rows_of
from readers import checkpoint_hashes

from rlexp import Trainer, load_config, load_policy
from rlexp.agent import Agent
from rlexp.agent.export import export_policy
from rlexp.runs import checkpoint

pytestmark = pytest.mark.usefixtures("quickly_checked")

ARGUMENTS = [
    *TINY,
    *("experiment=seen_target", "policy.channels=[3]", "policy.kernel_sizes=[4]", "policy.strides=[4]"),
    *("policy.shared=false", "policy.actor_keys=[image]", "policy.critic_keys=[image,position,target]"),
    *(
        "env.kwargs.show_target=true",
        "policy.num_cells=[8]",
        "optim.lr=1e-2",
        "logger=none",
        "threads=1",
        "checkpoint.interval=256",
    ),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``run`` is a whole run."""
    path = tmp_path_factory.mktemp("entries")
    Trainer.from_config(load_config(ARGUMENTS), path / "run").fit()
    return path


def test_resumed_from_its_middle_it_ends_as_it_did(trained: Path) -> None:
    resumed = shutil.copytree(trained / "run", trained / "resumed")
    (first, *later) = sorted(path for path in (resumed / "checkpoints").glob("0*") if path.name != "0" * 12)
    assert later
    for path in later:
        shutil.rmtree(path)
    for link in ("latest", "best"):
        (resumed / "checkpoints" / link).write_text(f"{first.name}\n")
    Trainer.resume(resumed).fit()
    assert rows_of(trained / "run") == rows_of(resumed)
    assert checkpoint_hashes(trained / "run") == checkpoint_hashes(resumed)


def returns(seeds: list[int], act: Any) -> list[float]:
    """Whole episodes in plain Gymnasium; ``act`` is shown the image alone."""
    found = []
    for seed in seeds:
        env = gymnasium.make("rlexp.envs.seen_target:SeenTarget-v0")
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(act(observation["image"]))
            total, done = total + float(reward), terminated or truncated
        found.append(total)
    return found


def test_the_image_alone_earns_the_evaluation(trained: Path) -> None:
    final = checkpoint.load(trained / "run").state.evaluator["final"]
    policy = load_policy(trained / "run")
    assert returns(final["seeds"], lambda image: policy({"image": image})) == pytest.approx(final["returns"], rel=1e-4)

    export_policy(Agent(trained / "run"), "onnx", trained / "policy.onnx")
    session = onnxruntime.InferenceSession(trained / "policy.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["batch", 1, 16, 16])
    exported = returns(final["seeds"], lambda image: session.run(["action"], {"image": image[None]})[0][0])
    assert exported == pytest.approx(final["returns"], rel=1e-4)


def test_a_torch_export_takes_a_dictionary_too(trained: Path) -> None:
    export_policy(Agent(trained / "run"), "torch", trained / "policy.pt2")
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    exported = torch.export.load(trained / "policy.pt2").module()({"image": images})
    torch.testing.assert_close(exported, load_policy(trained / "run")({"image": images}))


def test_what_is_no_such_observation_is_refused(trained: Path) -> None:
    policy = load_policy(trained / "run")
    image = np.zeros((1, 16, 16), np.uint8)
    for wrong, told in (
        (image, "reads the entries image"),
        ({"position": np.zeros(2)}, r"\['position'\]; this policy reads the entries image"),
        ({"image": image / 255}, r"'image' is float64, and this policy reads uint8"),
        ({"image": torch.zeros(1, 16, 16)}, r"'image' is float32, and this policy reads uint8"),
        ({"image": image.astype(np.int64) - 1}, r"'image' is int64, and this policy reads uint8"),
        ({"image": image[0]}, r"'image' has shape \[16, 16\]; this policy reads \[..., 1, 16, 16\]"),
    ):
        with pytest.raises(ValueError, match=told):
            policy(wrong)
    wide = image.astype(np.uint16) + 255
    assert np.array_equal(policy({"image": wide}), policy({"image": wide.astype(np.uint8)}))
    with_more = policy({"image": image, "position": np.zeros(2)})
    assert np.array_equal(with_more, policy({"image": image}))
