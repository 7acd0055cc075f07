"""Worker processes on this machine that collect, one per share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlexp.collectors.share import Share, ShareWorker
from rlexp.config import ConfigError
from rlexp.envs.saving import StateUnavailableError
from rlexp.workers import Workers


class Processes:
    """Workers in processes of their own, one per share (`rlexp.collectors.share.ShareWorkers`).

    Args:
        shares: what each worker collects.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, shares: Sequence[Share], timeout: float) -> None:
        self._timeout = timeout
        self._workers = Workers(
            ShareWorker,
            {str(share): (share,) for share in shares},
            preload=["rlexp.kernels.rollout"],
            passed_on=(ConfigError, StateUnavailableError),
        )

    @property
    def pids(self) -> list[int]:
        """The processes' ids."""
        return self._workers.pids

    def ask(self, method: str, *arguments: object) -> None:
        """Let each worker call a method, all with the same arguments."""
        self._workers.ask(method, *arguments)

    def answers(self) -> list[Any]:
        """What the calls returned, in the order of the shares."""
        return self._workers.answers(self._timeout)

    def close(self) -> None:
        """End the processes: they close their environments first, if they are not busy for long."""
        self._workers.close()
