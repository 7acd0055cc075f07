"""A trained agent, brought back from its checkpoint alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp import checkpoint
from rlexp.experiment import Experiment, read_config
from rlexp.normalization import RunningObservationNorm, observation_norms
from rlexp.policies import ActorCritic


class Agent:
    """The networks of a checkpoint and an environment with its normalisation statistics, frozen.

    Args:
        path: a checkpoint, or a run's folder for its latest one.
        device: where the networks go.
        trust: packages of your own that the checkpoint's config may import, beside rlexp, torch and the like.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
    """

    def __init__(self, path: Path | str, device: torch.device | str = "cpu", trust: Sequence[str] = ()) -> None:
        saved = checkpoint.load(Path(path))
        self.path = saved.path
        self.frames = saved.state.frames
        self.experiment: Experiment = read_config(saved.config, trust)
        # As wide as in training, so that every number comes out of the same matrix products.
        self.env: TransformedEnv = self.experiment.env.build(self.experiment.evaluation.episodes)
        for norm in observation_norms(self.env):
            index = list(self.env.transform).index(norm)
            norm.loc = saved.state.transforms[f"transforms.{index}.loc"]
            norm.scale = saved.state.transforms[f"transforms.{index}.scale"]
            if isinstance(norm, RunningObservationNorm):
                norm.collecting = False
        self.networks: ActorCritic = self.experiment.policy.build(self.env, torch.device(device))
        self.networks.actor.load_state_dict(saved.state.actor)
        self.networks.critic.load_state_dict(saved.state.critic)


class Policy(nn.Module):
    """From raw observations to the environment's actions, normalisation inside; deterministic.

    Args:
        agent: where the actor and the statistics come from.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.actor = agent.networks.actor
        read = set(self.actor.in_keys)
        transforms = [t.clone() for t in agent.env.transform if read & set(t.in_keys)]
        self.transforms = nn.ModuleList(transforms)
        for transform in transforms:
            transform.set_missing_tolerance(True)  # there are observations here, and no rewards

    @torch.no_grad()
    def forward(self, observation: Tensor) -> Tensor:
        """Act.

        Args:
            observation: as the simulator gives it, ``[..., *observation]``.

        Returns:
            Actions ``[..., *action]`` within the environment's bounds.
        """
        tensordict = TensorDict({"observation": observation})
        for transform in self.transforms:
            tensordict = cast("Transform", transform)._call(tensordict)
        weights = next(self.actor.parameters())
        tensordict["observation"] = tensordict["observation"].to(weights)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action: Tensor = self.actor(tensordict)["action"]
        return action


def load_policy(path: Path | str, device: torch.device | str = "cpu", trust: Sequence[str] = ()) -> Policy:
    """The policy of a checkpoint, or of the latest one in a run's folder.

    Args:
        path: a checkpoint, or a run's folder.
        device: where the networks go.
        trust: packages of your own that the checkpoint's config may import, beside rlexp, torch and the like.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
    """
    return Policy(Agent(path, device, trust)).to(device)
