"""Workers anywhere in a Ray cluster, by torchrl's RayCollector; needs the extra ``rlexp[ray]``."""

from __future__ import annotations

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector

from rlexp.collectors.share import Share, ShareWorker, WorkerError
from rlexp.config import ConfigError, Problem
from rlexp.envs.saving import StateUnavailableError

if TYPE_CHECKING:
    from rlexp.collectors import RayCollectorConfig


class RayWorkers:
    """Workers that Ray places, one a share (`rlexp.collectors.share.ShareWorkers`).

    Args:
        shares: what each worker collects.
        spec: where Ray is, and what it keeps for each worker.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or it is too small.
    """

    def __init__(self, shares: Sequence[Share], spec: RayCollectorConfig) -> None:
        try:
            import ray
        except ImportError as error:
            message = "needs the package ray: pip install 'rlexp[ray]'."
            raise ConfigError([Problem("collector", message, "ray")]) from error
        from torchrl.collectors.distributed import RayCollector as Actors

        self._ray, self._shares, self._timeout = ray, shares, spec.timeout
        self._asked: list[Any] = []
        needed = spec.num_cpus * len(shares)
        self._own = not ray.is_initialized()
        if self._own:
            _connect(ray, spec, needed)
        if (there := ray.cluster_resources().get("CPU", 0)) < needed:
            self._disconnect()
            message = f"the cluster has {there:g} CPUs; num_workers * num_cpus is {needed:g}."
            raise ConfigError([Problem("collector.num_workers", message, str(len(shares)))])
        with warnings.catch_warnings():
            # The weights go with each request for a batch, together with the statistics.
            warnings.filterwarnings("ignore", message="The policy is not an nn.Module")
            self._actors = Actors(
                [_no_env] * len(shares),
                frames_per_batch=len(shares),
                sync=True,
                collector_class=RemoteShare,
                collector_kwargs=[{"share": share} for share in shares],
                remote_configs={"num_cpus": spec.num_cpus},
                weight_sync_schemes={},
            )

    def ask(self, method: str, *arguments: object) -> None:
        """Let each worker call a method, all with the same arguments."""
        shared = self._ray.put(arguments)
        self._asked = [actor.call.remote(method, shared) for actor in self._actors.remote_collectors]

    def answers(self) -> list[Any]:
        """What the calls returned, in the order of the shares."""
        deadline = time.monotonic() + self._timeout
        found = [self._answer(*pair, deadline) for pair in zip(self._shares, self._asked, strict=True)]
        for answer in found:
            if isinstance(answer, ConfigError | StateUnavailableError):
                raise answer
        return found

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        if self._actors.remote_collectors:
            self._actors.shutdown()
            self._disconnect()

    def _answer(self, share: Share, reference: Any, deadline: float) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except errors.GetTimeoutError as error:
            message = f"{share}, in Ray, did not answer in {self._timeout:g} s (collector.timeout)."
            raise WorkerError(message) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, ConfigError | StateUnavailableError):
                return error.cause
            raise WorkerError(f"{share} failed in Ray:\n{error}") from error
        except errors.RayError as error:
            raise WorkerError(f"{share}, in Ray, died: {error}") from error

    def _disconnect(self) -> None:
        if self._own:
            self._ray.shutdown()


class RemoteShare(BaseCollector):
    """A `ShareWorker` as torchrl's ``RayCollector`` builds it: a collector that is asked through `call` alone.

    Args:
        create_env_fn: not needed; the share describes its environments.
        share: what to collect.
        kwargs: what torchrl hands to every collector; the share has its own.
    """

    def __init__(self, create_env_fn: object, *, share: Share, **kwargs: object) -> None:
        super().__init__()
        self._worker = ShareWorker(share)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the worker."""
        return getattr(self._worker, method)(*arguments)

    def iterator(self) -> Iterator[TensorDictBase]:
        """Not asked for."""
        raise NotImplementedError

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """Close the environments."""
        self._worker.close()

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Not asked for."""
        raise NotImplementedError

    def state_dict(self) -> OrderedDict[str, Any]:
        """Not asked for."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: OrderedDict[str, Any]) -> None:
        """Not asked for."""
        raise NotImplementedError


def _connect(ray: Any, spec: RayCollectorConfig, cpus: float) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if spec.address is None:
        # For this run alone: nothing of it listens beyond this machine or reports anywhere.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        options["address"] = spec.address
    try:
        ray.init(**options | spec.init)
    except (ConnectionError, ValueError, RuntimeError, TypeError) as error:
        where = "started on this machine" if spec.address is None else "reached there"
        raise ConfigError([Problem("collector.address", f"Ray cannot be {where}: {error}", spec.address)]) from error


def _no_env() -> None:
    """In place of an environment's constructor."""
