"""Acting in NumPy and for whole batches against torchrl's actor, one call per step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agents import networks
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp.kernels.acting import FamilyActing, _useful_threads, acting
from rlexp.machine import at_most_threads
from rlexp.policies.recurrent import STATE

ACTORS = {
    "tanh_normal": ["env=hopper"],
    "tanh_normal, shared": ["env=hopper", "policy.shared=true"],
    "normal": ["env=hopper", "policy=normal"],
    "normal, dependent scale": ["env=hopper", "policy=normal", "policy.state_independent_scale=false"],
    "normal, wide": ["env=hopper", "policy=normal", "policy.num_cells=[256,256]"],
    "normal, elu": ["env=hopper", "policy=normal", "policy.activation_class=ELU"],
    "categorical": ["env=acrobot", "policy=categorical"],
    "categorical, wide": ["env=acrobot", "policy=categorical", "policy.num_cells=[256,256]"],
    "gru": ["env=hopper", "policy=gru"],
    "gru, shared": ["env=acrobot", "policy=gru", "policy.shared=true"],
    "lstm": ["env=hopper", "policy=lstm", "policy.distribution=normal"],
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("overrides", ACTORS.values(), ids=ACTORS)
def test_it_acts_as_torchrls_actor_does(overrides: list[str], deterministic: bool) -> None:
    """From the same noise, which is drawn step by step."""
    env, *policy = overrides
    built = networks(*policy, env=env.removeprefix("env="))
    shape = {"env=hopper": (11,), "env=acrobot": (6,)}[env]
    observations, ended = torch.randn(5, 3, *shape), torch.rand(5, 3) < 0.2
    act = acting(built.actor, 3, deterministic=deterministic)
    torch.manual_seed(1)
    act.begin(5)
    ours = []
    for observation, end in zip(observations, ended, strict=True):
        ours.append(torch.from_numpy(act(observation.numpy()).copy()))
        act.restart(np.flatnonzero(end.numpy()))
    written = act.outputs(
        TensorDict({"observation": observations.swapaxes(0, 1), "action": torch.stack(ours, 1)}, [3, 5])
    )

    torch.manual_seed(1)
    carried: dict[str, torch.Tensor] = {}
    if STATE in built.actor.in_keys:
        state_size = built.actor.module[0].module.state_size
        carried = {STATE: torch.zeros(3, state_size), "is_init": torch.ones(3, 1, dtype=torch.bool)}
    kind = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    for t in range(5):
        with torch.no_grad(), set_exploration_type(kind):
            acted = built.actor(TensorDict({"observation": observations[t], **carried}, [3]))
        torch.testing.assert_close(ours[t], acted["action"], rtol=1e-4, atol=1e-5)
        for key in ("loc", "scale", "logits", "action_log_prob"):
            if key in acted:
                torch.testing.assert_close(written[key][:, t], acted[key], rtol=1e-4, atol=1e-4)
        if carried:
            torch.testing.assert_close(written[STATE][:, t], carried[STATE])
            assert torch.equal(written["is_init"][:, t], carried["is_init"])
            torch.testing.assert_close(written["next", STATE][:, t], acted["next", STATE])
            # As torchrl's InitTracker and TensorDictPrimer do where an episode begins.
            ends = ended[t][:, None]
            carried = {STATE: acted["next", STATE].masked_fill(ends, 0), "is_init": ends}
    assert ended[:-1].any()


@pytest.mark.parametrize("policy", [["policy=normal", "policy.num_cells=[256,256]"], ["policy=gru"]])
def test_the_learners_threads_rest_while_it_acts(policy: list[str]) -> None:
    act = acting(networks(*policy, env="hopper").actor, 3)
    assert isinstance(act, FamilyActing)
    act.begin(1)
    forward, used = act._parameters, []

    def counted(*observation: np.ndarray) -> tuple[np.ndarray, ...]:
        used.append(torch.get_num_threads())
        return forward(*observation)

    act._parameters = counted
    with at_most_threads(None):
        torch.set_num_threads(2)
        act(np.zeros((3, 11), np.float32))
        assert (used, torch.get_num_threads()) == ([1], 2)


def test_convolutions_keep_them() -> None:
    """Their weights do not tell how much there is to do."""
    assert _useful_threads(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Linear(4, 2)), 3) is None
