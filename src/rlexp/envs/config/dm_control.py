"""Settings of dm_control's tasks."""

from __future__ import annotations

from collections.abc import Iterator

from rlexp.config import Problem, did_you_mean
from rlexp.envs.config.simulators import SimulatorConfig


class DmControlConfig(SimulatorConfig):
    """A task of dm_control's suite, by Shimmy's Gymnasium interface.

    Attributes:
        domain: the body, such as ``cartpole``.
        task: what it is to do, such as ``swingup``.
    """

    domain: str
    task: str

    @property
    def gymnasium_id(self) -> str:
        """Gymnasium's id of one simulator."""
        from rlexp.envs.dm_control import env_id

        return env_id(self.domain, self.task)

    def problems(self) -> Iterator[Problem]:
        """The suite must have the task, with a time limit: evaluation runs whole episodes."""
        yield from super().problems()
        try:
            from rlexp.envs.dm_control import tasks
        except ImportError as error:
            yield Problem("domain", f"needs more packages: pip install 'rlexp[dm-control]' ({error}).", self.domain)
            return
        if self.domain not in (found := tasks()):
            yield Problem("domain", f"dm_control has no such domain. {did_you_mean(self.domain, found)}", self.domain)
        elif self.task not in found[self.domain]:
            hint = did_you_mean(self.task, found[self.domain])
            yield Problem("task", f"dm_control's {self.domain} has no such task. {hint}", self.task)
        elif self.domain == "lqr" and self.max_episode_steps is None:
            yield Problem("max_episode_steps", "is needed: dm_control's lqr has no time limit.", "null")
