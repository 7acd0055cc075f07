"""Networks, and transitions to compute losses and advantages from."""

from __future__ import annotations

import functools

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import TransformedEnv
from torchrl.modules import IndependentNormal, ProbabilisticActor, TanhNormal

from rlexp import Trainer, load_config
from rlexp.experiment import ExperimentConfig
from rlexp.losses import MinibatchLossConfig
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import STATE, RecurrentActor, recurrent_network
from rlexp.training.learners import PPOLearner

CPU = torch.device("cpu")


@functools.cache
def composed(*overrides: str) -> ExperimentConfig:
    """`load_config`, once for each command line."""
    return load_config(overrides)


# Three batches of 64 frames: every part of the loop, in a fraction of a second.
SMALL = [
    *("collector.frames_per_batch=64", "env.num_envs=2", "minibatch_size=16", "num_epochs=1", "total_frames=192"),
    *("env.init_random_steps=16", "evaluation.interval=1_000", "evaluation.episodes=1", "logger=none", "threads=1"),
    *("policy.num_cells=[8]", "env.max_episode_steps=10"),
]


def minibatch_loss(*overrides: str) -> MinibatchLossConfig:
    """The config of a loss that minibatches minimise."""
    config = composed(*overrides).loss
    assert isinstance(config, MinibatchLossConfig)
    return config


def ppo_learner(trainer: Trainer) -> PPOLearner:
    """The learner of a trainer."""
    assert isinstance(trainer.learner, PPOLearner)
    return trainer.learner


@functools.cache
def _environment(option: str) -> TransformedEnv:
    return composed(f"env={option}", "env/transforms=none").env.build(1)


def networks(*overrides: str, env: str = "hopper") -> ActorCritic:
    """Networks whose weights are no longer all alike."""
    config = composed(f"env={env}", "env/transforms=none", *overrides)
    torch.manual_seed(0)
    built = config.policy.build(_environment(env), CPU)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def gaussian_networks() -> ActorCritic:
    """An actor of a kind that the kernels do not know."""
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


def batch_of(built: ActorCritic, *size: int) -> TensorDict:
    """Transitions of episodes that end, from a policy that differs a little from the actor as it is now."""
    torch.manual_seed(1)
    network = recurrent_network(built.actor)
    (features,) = {p.shape[1] for p in [next(iter(built.actor.parameters()))] if p.dim() == 2}
    observation, following = torch.randn(*size, features), torch.randn(*size, features)
    terminated, truncated = torch.rand(*size, 1) < 0.1, torch.rand(*size, 1) < 0.1
    done = terminated | truncated
    # Where nothing ends, a step begins where the one before it led.
    following[..., :-1, :] = torch.where(done[..., :-1, :], following[..., :-1, :], observation[..., 1:, :])
    after = {"observation": following, "reward": torch.randn(*size, 1), "done": done, "terminated": terminated}
    batch = TensorDict({"observation": observation, "next": after}, size)
    if network is not None:
        _carry_states(batch, network, done)
    with torch.no_grad():
        now = built.actor.get_dist_params(batch.select(*built.actor.in_keys))
        for key in built.actor.dist_params_keys:
            # Scales stay positive.
            batch.set(key, now[key] * (0.05 * torch.randn_like(now[key])).exp())
        acted = built.actor.build_dist_from_params(batch)
        action = acted.sample()
        if action.is_floating_point() and isinstance(acted, TanhNormal):
            action[..., 0, 0] = 1  # on the bound, where the squashing has no inverse
        batch.set("action", action)
        batch.set("action_log_prob", acted.log_prob(action))
    return batch


def _carry_states(batch: TensorDict, network: RecurrentActor, done: torch.Tensor) -> None:
    """Write the recurrent states of stepping through a batch ``[num_envs, steps]``."""
    is_init = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], 1)
    before, after, state = [], [], torch.zeros(len(done), network.state_size)
    with torch.no_grad():
        for t in range(done.shape[1]):
            before.append(state)
            *_, state = network(batch["observation"][:, t], is_init[:, t], state)
            after.append(state)
    batch["is_init"], batch[STATE] = is_init, torch.stack(before, 1)
    batch["next", "is_init"], batch["next", STATE] = torch.zeros_like(is_init), torch.stack(after, 1)
