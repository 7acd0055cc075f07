"""Collectors: a `CollectorSpec` describes how batches are gathered, `build` makes torchrl's collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlexp.config import Count, Positive, Spec

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase
    from torchrl.collectors import BaseCollector
    from torchrl.envs import EnvBase


class CollectorSpec(Spec):
    """Base of all collectors.

    Attributes:
        frames_per_batch: simulator frames of one batch, all environments together.
        timeout: seconds to wait for a worker process before it is given up.
    """

    frames_per_batch: Count
    timeout: Positive

    def build(self, env: EnvBase, actor: TensorDictModuleBase, frame_skip: int, device: torch.device) -> BaseCollector:
        """A collector that yields batches ``[num_envs, steps]`` for ever."""
        raise NotImplementedError

    def state(self, collector: Any) -> dict[str, Any]:
        """What a collector carries from one batch to the next, the simulators' own states left out."""
        state: dict[str, Any] = collector.state_dict()
        return state

    def load_state(self, collector: Any, state: dict[str, Any]) -> None:
        """Let the next batch start where `state` was taken."""
        collector.load_state_dict(state)


class RolloutCollector(CollectorSpec):
    """Steps batched simulators and the policy in turn, with no tensordict per step.

    Builds `rlexp.collectors.rollout.RolloutCollector`.
    Collects what `SyncCollector` collects, several times faster, from the environments of ``env=gym`` behind the
    transforms that come with them.
    """

    def build(self, env: EnvBase, actor: TensorDictModuleBase, frame_skip: int, device: torch.device) -> BaseCollector:
        """The collector, its simulators reset."""
        from rlexp.collectors.rollout import RolloutCollector

        return RolloutCollector(env, actor, self.frames_per_batch // frame_skip, device)


class SyncCollector(CollectorSpec):
    """Steps the environment and the policy in turn, in this process (builds ``torchrl.collectors.Collector``)."""

    def build(self, env: EnvBase, actor: TensorDictModuleBase, frame_skip: int, device: torch.device) -> BaseCollector:
        """Torchrl's single-process collector."""
        from torchrl.collectors import Collector

        return Collector(
            env,
            actor,
            frames_per_batch=self.frames_per_batch // frame_skip,
            total_frames=-1,
            policy_device=device,
            env_device=env.device,
            storing_device=device,
            split_trajs=False,
            trust_policy=True,
            auto_register_policy_transforms=False,
        )

    def state(self, collector: Any) -> dict[str, Any]:
        """The carried transition and the next trajectory's number; torchrl's own state dict holds neither."""
        carried: dict[str, Any] = collector._carrier.clone().to_dict()
        return {"carried": carried, "trajectories": collector._traj_pool.state_dict()}

    def load_state(self, collector: Any, state: dict[str, Any]) -> None:
        """Put both back."""
        from tensordict import TensorDict

        fresh = collector._carrier
        collector._carrier = TensorDict.from_dict(state["carried"], batch_size=fresh.batch_size, device=fresh.device)
        collector._traj_pool.load_state_dict(state["trajectories"])
