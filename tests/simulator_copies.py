"""Two copies of a simulator, one of which goes on from the other's state."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from tensordict import TensorDictBase

from rlexp import load_config
from rlexp.envs import EnvConfig

PIXELS = ["env.from_pixels=true", "env/transforms=none", "env.max_episode_steps=25", "env.pixels.size=24"]


def assert_goes_on_exactly(spec: EnvConfig, steps: int = 12, more: int = 60) -> None:
    ours, copy = (spec.build_base(2) for _ in range(2))
    ours.set_seed(1)
    torch.manual_seed(0)
    before = ours.rollout(steps, break_when_any_done=False)[:, -1]["next"].exclude("reward")
    copy.load_simulator_state(ours.simulator_state())
    actions = [ours.action_spec.rand() for _ in range(more)]
    rows: list[TensorDictBase] = []
    for env in (ours, copy):
        tensordict = before.clone()
        seen: list[TensorDictBase] = []
        for action in actions:
            stepped, tensordict = env.step_and_maybe_reset(env.maybe_reset(tensordict).set("action", action))
            seen.append(stepped["next"].clone())
        rows.append(torch.stack(seen))
        env.close()
    assert (rows[0] == rows[1]).all()
    ended = rows[0].get("done").any()
    assert ended  # episodes that begin later need the generator


def stacked_images_go_on_exactly(overrides: list[str], folder: Path) -> None:
    os.environ["MUJOCO_GL"] = "egl"  # read when the renderer is first imported, hence a process of its own
    os.chdir(folder)
    assert_goes_on_exactly(load_config([*overrides, *PIXELS, "env.max_episode_steps=8"]).env, steps=5, more=6)
