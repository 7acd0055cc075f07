"""Networks and transitions to compute losses and advantages of."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor

from rlexp import load_config
from rlexp.policies import ActorCritic

CPU = torch.device("cpu")


def networks(*overrides: str, env: str = "hopper") -> ActorCritic:
    torch.manual_seed(0)
    config = load_config([f"env={env}", "env/transforms=none", *overrides])
    built = config.policy.build(config.env.build(1), CPU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def gaussian_networks() -> ActorCritic:
    """An actor of a kind that has no fast path."""
    torch.manual_seed(0)
    actor = ProbabilisticActor(
        TensorDictModule(_Head(), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        distribution_kwargs={"tanh_loc": False},
        return_log_prob=True,
    )
    return ActorCritic(actor, networks().critic)


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(11, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loc, scale = self.linear(x).chunk(2, -1)
        return loc, scale.exp()


def batch_of(built: ActorCritic, *size: int, features: int = 11, actions: int = 3) -> TensorDict:
    """Transitions of episodes that end, from a policy that differs from the actor as it is now."""
    torch.manual_seed(1)
    observation, following = torch.randn(*size, features), torch.randn(*size, features)
    terminated, truncated = torch.rand(*size, 1) < 0.1, torch.rand(*size, 1) < 0.1
    done = terminated | truncated
    # Where nothing ends, a step begins where the one before it led.
    following[..., :-1, :] = torch.where(done[..., :-1, :], following[..., :-1, :], observation[..., 1:, :])
    after = {"observation": following, "reward": torch.randn(*size, 1), "done": done, "terminated": terminated}
    action = torch.rand(*size, actions) * 2 - 1
    action[..., 0, 0] = 1  # on the bound, where the squashing has no inverse
    batch = TensorDict({"observation": observation, "action": action, "next": after}, size)
    with torch.no_grad():
        now = built.actor.get_dist_params(batch.select("observation"))
        batch.set("loc", now["loc"] + 0.05 * torch.randn(*size, actions))
        batch.set("scale", now["scale"] * (0.05 * torch.randn(*size, actions)).exp())
        batch.set("action_log_prob", built.actor.build_dist_from_params(batch).log_prob(action))
    return batch
