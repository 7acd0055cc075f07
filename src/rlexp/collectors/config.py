"""Settings of the collectors; imports torch only to build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlexp.config import Config, ConfigError, Count, Positive, Problem
from rlexp.config.trust import of_ray
from rlexp.distributed import ALONE, Group
from rlexp.envs import BatchedConfig, EnvConfig
from rlexp.policies import PolicyConfig

if TYPE_CHECKING:
    import torch
    from tensordict.nn import TensorDictModuleBase
    from torchrl.collectors import BaseCollector
    from torchrl.envs import EnvBase

    from rlexp.collectors.share import Share, ShareWorkers


@dataclass(frozen=True)
class Source:
    """What batches come from; picklable, so that another process can build its own.

    Attributes:
        env: the environments.
        policy: the policy that acts in them.
        seed: seeds everything random in them.
        kernels: whether kernels may stand in for torchrl's parts.
        group: the learners, of whose environments ``env`` is a share.
        raw: whether batches hold raw observations too (`rlexp.envs.raw_observations`).
    """

    env: EnvConfig
    policy: PolicyConfig
    seed: int
    kernels: bool
    group: Group = ALONE
    raw: bool = False


class CollectorConfig(Config):
    """Base of all collectors.

    Attributes:
        frames_per_batch: simulator frames of one batch, all environments together.
        timeout: seconds to wait for a worker process before it is given up.
    """

    lags: ClassVar[bool] = False
    """Whether a batch may come from the policy before the newest update."""

    frames_per_batch: Count
    timeout: Positive

    @property
    def busy_while_learning(self) -> int:
        """Processes on this machine that collect while the learner learns."""
        return 0

    def problems_with(self, env: EnvConfig) -> Iterator[Problem]:
        """Rules across this spec's settings and the environment's; keys are full paths."""
        return iter(())

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """A collector that yields batches ``[num_envs, steps]`` without end.

        Args:
            env: all environments, seeded, their normalisation initialised.
            actor: the policy; its weights at the start of a batch collect that batch.
            source: what both were built from, and whether kernels may stand in for torchrl's parts.
            device: where the actor is and the batches go.

        Raises:
            ConfigError: the environment or the policy cannot be collected with in this way.
        """
        raise NotImplementedError


class SyncCollectorConfig(CollectorConfig):
    """Steps the environment and the policy in turn, in this process: ``torchrl.collectors.Collector``."""

    builds = ("torchrl.collectors.Collector",)

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """Torchrl's single-process collector, or the array rollout, which collects the same.

        Raises:
            ConfigError: there are several learners, and the array rollout cannot collect here.
        """
        from rlexp.collectors.sync import SyncCollector
        from rlexp.kernels.select import Kernels

        steps = self.frames_per_batch // source.env.frame_skip
        if source.group.size > 1:
            return self._rollout(env, actor, steps, device, source.group)
        fast = Kernels(source.kernels).collector(env, actor, steps, device)
        return SyncCollector(env, actor, steps, device) if fast is None else fast

    def _rollout(
        self, env: EnvBase, actor: TensorDictModuleBase, steps: int, device: torch.device, group: Group
    ) -> BaseCollector:
        """The array rollout, which alone lets several learners draw the noise of one."""
        from rlexp.kernels.rollout import RolloutCollector
        from rlexp.kernels.unsupported import UnsupportedError

        try:
            return RolloutCollector(env, actor, steps, device, group)
        except UnsupportedError as error:
            message = f"cannot collect here for several learners: {error}. Train with one, without torchrun."
            raise ConfigError([Problem("collector", message, "sync")]) from error


class DeviceCollectorConfig(CollectorConfig):
    """Steps simulators written in PyTorch and the policy in turn, on the device: `rlexp.kernels.device_rollout`."""

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """The collector.

        Raises:
            ConfigError: the environment, a transform or the policy cannot be collected with in this way.
        """
        from rlexp.kernels.device_rollout import DeviceCollector
        from rlexp.kernels.unsupported import UnsupportedError

        try:
            return DeviceCollector(env, actor, self.frames_per_batch // source.env.frame_skip, device)
        except UnsupportedError as error:
            message = f"cannot collect here: {error}. Use collector=sync."
            raise ConfigError([Problem("collector", message, "device")]) from error


class WorkersConfig(CollectorConfig):
    """Base of the collectors that divide the environments among processes, each with a copy of the policy.

    Attributes:
        num_workers: processes, each with as many environments.
    """

    num_workers: Count

    def problems_with(self, env: EnvConfig) -> Iterator[Problem]:
        """The environments must be shared out evenly, over processes that start none of their own."""
        if env.num_envs % self.num_workers:
            fits = ", ".join(str(n) for n in range(1, env.num_envs + 1) if env.num_envs % n == 0)
            message = f"must divide env.num_envs = {env.num_envs}, so that each process has as many: {fits}."
            yield Problem("collector.num_workers", message, str(self.num_workers))
        if not isinstance(env, BatchedConfig):
            return
        if env.num_workers not in ("auto", 1) and not env.has_threads:
            message = "must be 1 with this collector: collector.num_workers shares the simulators out."
            yield Problem("env.num_workers", message, str(env.num_workers))
        if not env.known_everywhere():
            yield Problem("env.id", f"cannot be made by worker processes: {env.unknown_elsewhere()}", env.gymnasium_id)

    def build(self, env: EnvBase, actor: TensorDictModuleBase, source: Source, device: torch.device) -> BaseCollector:
        """The collector, its processes started."""
        from rlexp.collectors.multi import MultiCollector
        from rlexp.collectors.share import Share

        inner = SyncCollectorConfig(frames_per_batch=self.frames_per_batch // self.num_workers, timeout=self.timeout)
        shares = [Share(source, inner, i, self.num_workers) for i in range(self.num_workers)]
        return MultiCollector(env, actor, self._workers(shares), device, ahead=self.lags)

    def _workers(self, shares: list[Share]) -> ShareWorkers:
        from rlexp.collectors.processes import Processes

        return Processes(shares, self.timeout)


class MultiSyncCollectorConfig(WorkersConfig):
    """Processes on this machine that collect a batch together, then wait while the learner learns from it.

    Builds `rlexp.collectors.multi.MultiCollector` over `rlexp.collectors.processes.Processes`.
    """


class MultiAsyncCollectorConfig(WorkersConfig):
    """As `MultiSyncCollectorConfig`, but the next batch is collected while the learner learns from this one.

    Every batch but the first comes from the policy before the newest update.
    """

    lags = True

    @property
    def busy_while_learning(self) -> int:
        """All of them."""
        return self.num_workers


class RayCollectorConfig(WorkersConfig):
    """As `MultiSyncCollectorConfig`, with processes anywhere in a Ray cluster (builds torchrl's ``RayCollector``).

    Attributes:
        address: of a running cluster; None starts Ray on this machine, for this run alone.
        num_cpus: CPUs of the cluster that Ray reserves for each worker.
        init: further keyword arguments of ``ray.init``.
    """

    address: str | None
    num_cpus: Positive
    init: dict[str, Any]

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """Another machine's address, and the arguments that run something, such as ``runtime_env``."""
        if self.address not in (None, "auto", "local"):
            yield "address", "ray", str(self.address)
        for key, value in of_ray(self.init):
            yield f"init.{key}", "ray", value

    def _workers(self, shares: list[Share]) -> ShareWorkers:
        from rlexp.collectors.ray import RayWorkers

        return RayWorkers(shares, self)
