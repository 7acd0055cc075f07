"""Collectors: a `CollectorSpec` describes how batches are gathered, `build` makes torchrl's collector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlexp.config import Count, Positive, Problem, Spec
from rlexp.envs import EnvSpec, GymEnv, SimulatorEnv
from rlexp.policies import PolicySpec

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase
    from torchrl.collectors import BaseCollector
    from torchrl.envs import EnvBase

    from rlexp.collectors.share import Share, Workers


@dataclass(frozen=True)
class Source:
    """What batches come from; picklable, so that another process can build its own.

    Attributes:
        env: the environments.
        policy: who acts in them.
        seed: everything random in them follows from it.
    """

    env: EnvSpec
    policy: PolicySpec
    seed: int


class CollectorSpec(Spec):
    """Base of all collectors.

    Attributes:
        frames_per_batch: simulator frames of one batch, all environments together.
        timeout: seconds to wait for a worker process before it is given up.
    """

    frames_per_batch: Count
    timeout: Positive

    @property
    def busy_while_learning(self) -> int:
        """Processes on this machine that collect while the learner learns."""
        return 0

    def problems_with(self, env: EnvSpec) -> Iterator[Problem]:
        """Rules across this spec's settings and the environment's; keys are full paths."""
        return iter(())

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """A collector that yields batches ``[num_envs, steps]`` for ever.

        Args:
            env: all environments, seeded, their normalisation initialised.
            actor: acts in them; what it is at the start of a batch collects that batch.
            source: what both were built from.
            device: where the actor is and the batches go.
        """
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

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """The collector, its simulators reset."""
        from rlexp.collectors.rollout import RolloutCollector

        return RolloutCollector(env, actor, self.frames_per_batch // source.env.frame_skip, device)


class SyncCollector(CollectorSpec):
    """Steps the environment and the policy in turn, in this process (builds ``torchrl.collectors.Collector``)."""

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """Torchrl's single-process collector."""
        from torchrl.collectors import Collector

        return Collector(
            env,
            actor,
            frames_per_batch=self.frames_per_batch // source.env.frame_skip,
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


class WorkersSpec(CollectorSpec):
    """Base of the collectors whose environments are shared out over processes, each with a copy of the policy.

    Attributes:
        num_workers: processes, each with as many environments.
        inner: how each of them collects: ``rollout`` or ``sync``, as those collectors do.
    """

    num_workers: Count
    inner: Literal["rollout", "sync"]

    def problems_with(self, env: EnvSpec) -> Iterator[Problem]:
        """The environments must be shared out evenly, over processes that start none of their own."""
        if env.num_envs % self.num_workers:
            fits = ", ".join(str(n) for n in range(1, env.num_envs + 1) if env.num_envs % n == 0)
            message = f"must divide env.num_envs = {env.num_envs}, so that each process has as many: {fits}."
            yield Problem("collector.num_workers", message, str(self.num_workers))
        threads = isinstance(env, GymEnv) and env.backend == "envpool"
        if isinstance(env, SimulatorEnv) and env.num_workers not in ("auto", 1) and not threads:
            message = "must be 1 with this collector: collector.num_workers shares the simulators out."
            yield Problem("env.num_workers", message, str(env.num_workers))

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """The collector, its processes started."""
        from rlexp.collectors.multi import MultiCollector
        from rlexp.collectors.share import Share

        kind = RolloutCollector if self.inner == "rollout" else SyncCollector
        inner = kind(frames_per_batch=self.frames_per_batch // self.num_workers, timeout=self.timeout)
        shares = [Share(source, inner, i, self.num_workers) for i in range(self.num_workers)]
        return MultiCollector(env, actor, self._workers(shares), device, ahead=self.busy_while_learning > 0)

    def _workers(self, shares: list[Share]) -> Workers:
        from rlexp.collectors.processes import Processes

        return Processes(shares, self.timeout)


class MultiSyncCollector(WorkersSpec):
    """Processes on this machine that collect a batch together, then wait while the learner learns from it.

    Builds `rlexp.collectors.multi.MultiCollector` over `rlexp.collectors.processes.Processes`.
    """


class MultiAsyncCollector(WorkersSpec):
    """As `MultiSyncCollector`, but the next batch is collected while the learner learns from this one.

    Every batch but the first comes from the policy before the newest update.
    """

    @property
    def busy_while_learning(self) -> int:
        """All of them."""
        return self.num_workers


class RayCollector(WorkersSpec):
    """As `MultiSyncCollector`, with processes anywhere in a Ray cluster (builds torchrl's ``RayCollector``).

    Attributes:
        address: of a running cluster; None starts Ray on this machine, for this run alone.
        num_cpus: of the cluster, that Ray keeps for each worker.
        init: further keyword arguments of ``ray.init``.
    """

    address: str | None
    num_cpus: Positive
    init: dict[str, Any]

    def _workers(self, shares: list[Share]) -> Workers:
        from rlexp.collectors.ray import RayWorkers

        return RayWorkers(shares, self)
