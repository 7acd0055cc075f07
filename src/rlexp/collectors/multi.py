"""A collector whose environments are shared out over processes: tells them the policy, joins what they collect."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector
from torchrl.envs import TransformedEnv

from rlexp.collectors.share import ShareWorkers
from rlexp.envs.normalization import RunningObservationNorm, observation_norms
from rlexp.envs.saving import State


class MultiCollector(BaseCollector):
    """Batches that several workers collect, each its rows, always the same ones.

    Each batch is collected by one policy under one set of normalisation statistics, both this process's as they are
    when the batch is asked for, so ``action_log_prob`` is that policy's. What is collected does not depend on which
    worker is fast.

    Args:
        env: the environments whose rows the batches hold; its running statistics take in what the workers saw.
        actor: the policy.
        workers: the processes.
        device: where the batches go.
        ahead: ask for the next batch as one is handed out, and so before the policy has learned from it.

    Shapes:
        batches ``[num_envs, steps]``; entries as those of the workers' own collectors.

    Raises:
        ConfigError: the environment, a transform or the policy cannot be collected with in this way.
        WorkerError: from the iterator, a worker failed, died or hangs.
    """

    def __init__(
        self,
        env: TransformedEnv,
        actor: TensorDictModuleBase,
        workers: ShareWorkers,
        device: torch.device,
        *,
        ahead: bool,
    ) -> None:
        super().__init__()
        self.env, self.actor, self.workers, self.device = env, actor, workers, device
        self._ahead = ahead
        self._asked = False
        self._ready: list[dict[str, Any]] | None = None
        try:
            self._call("start", *self._policy())
        except BaseException:
            workers.close()
            raise

    def iterator(self) -> Iterator[TensorDictBase]:
        """Batches for ever."""
        while True:
            yield self.rollout()

    def rollout(self) -> TensorDictBase:
        """The next batch ``[num_envs, steps]``."""
        if self._ready is None and not self._asked:
            self._ask()
        self._wait()
        assert self._ready is not None
        shares, self._ready = self._ready, None
        norms = [norm for norm in observation_norms(self.env) if isinstance(norm, RunningObservationNorm)]
        for share in shares:
            for norm, taken in zip(norms, share["moments"], strict=True):
                for n, mean, var in taken:
                    norm.merge(n, torch.tensor(mean), torch.tensor(var))
        if self._ahead:
            self._ask()
        entries = _joined([share["batch"] for share in shares])
        num_envs, steps = entries["next"]["done"].shape[:2]
        return TensorDict(entries, batch_size=(num_envs, steps), device=self.device, names=(None, "time"))

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """End the workers, and close the environment."""
        self.workers.close()
        if close_env and not self.env.is_closed:
            self.env.close(raise_if_closed=raise_on_error)

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Not here: the workers are seeded by the `Share` that they are built from."""
        raise NotImplementedError("the workers are seeded as they are built")

    def simulator_state(self) -> State:
        """Every worker's simulators in the middle of their episodes; a batch under way is finished first.

        Raises:
            StateUnavailableError: they cannot be saved.
        """
        self._wait()
        return {"workers": self._call("simulator_state")}

    def load_simulator_state(self, state: State) -> None:
        """Go on exactly where `simulator_state` was called, together with `load_state_dict`.

        Raises:
            StateUnavailableError: the state is another simulator's.
        """
        self._call("load_simulator_state", state["workers"])

    def state_dict(self) -> OrderedDict[str, Any]:
        """All else of the workers' state, and the batch that was collected ahead, if there is one."""
        self._wait()
        return OrderedDict(workers=self._call("state"), ready=self._ready)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; the simulators' state must be that of the same moment."""
        self._call("load_state", state_dict["workers"])
        self._ready = state_dict["ready"]

    def _policy(self) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
        weights = {name: value.numpy(force=True) for name, value in self.actor.state_dict().items()}
        norms = observation_norms(self.env)
        return weights, [(norm.loc.numpy(force=True), norm.scale.numpy(force=True)) for norm in norms]

    def _ask(self) -> None:
        self.workers.ask("collect", *self._policy())
        self._asked = True

    def _wait(self) -> None:
        """Let a batch that was asked for be ready."""
        if self._asked:
            self._ready, self._asked = self.workers.answers(), False

    def _call(self, method: str, *arguments: object) -> list[Any]:
        self.workers.ask(method, *arguments)
        return self.workers.answers()


def _joined(shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested arrays, one share's rows after the other's."""
    return {
        key: _joined([share[key] for share in shares])
        if isinstance(value, Mapping)
        else np.concatenate([share[key] for share in shares])
        for key, value in shares[0].items()
    }
