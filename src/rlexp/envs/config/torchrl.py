"""Settings of torchrl's environments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rlexp.config import Node, Problem, build_at
from rlexp.envs.config.base import EnvConfig
from rlexp.machine import pick_device

if TYPE_CHECKING:
    from torchrl.envs import EnvBase


class TorchrlConfig(EnvConfig):
    """Any torchrl environment, as `rlexp.envs.torchrl.batched` brings it into form.

    Attributes:
        make: one environment; ``frame_skip`` is handed to it where it is not 1. Where it has a ``num_envs``, each batch
            is made with as many rows as are needed, and ``device: auto`` is where the policy is.
        flatten: one vector of all entries, if none is called ``observation``.
    """

    make: Node
    flatten: bool

    def problems(self) -> Iterator[Problem]:
        """An environment that is told its batch size is told this one."""
        rows = self.make.arguments.get("num_envs", self.num_envs)
        if rows != self.num_envs:
            yield Problem("make.num_envs", f"must be env.num_envs = {self.num_envs}.", str(rows))

    def on(self, device: object) -> TorchrlConfig:
        """With ``device: auto`` resolved."""
        if self.make.arguments.get("device") != "auto":
            return self
        make = replace(self.make, arguments=self.make.arguments | {"device": str(device)})
        return self.model_copy(update={"make": make})

    @property
    def has_own_code(self) -> bool:
        """As `EnvConfig` has it, or the environment's own."""
        return self.make.target.split(".")[0] not in ("torchrl", "rlexp") or super().has_own_code

    def build_base(self, num_envs: int) -> EnvBase:
        """As many copies in a row, or the environment itself where it is a batch already."""
        from rlexp.envs.torchrl import batched

        if "dmcontrol" in self.make.target.lower().replace("_", ""):
            import rlexp.envs.dm_control  # noqa: F401 - makes dm_control work with MuJoCo 4
        arguments = self.on(pick_device("auto")).make.arguments
        rows = num_envs if "num_envs" in arguments else self.num_envs
        if "num_envs" in arguments:
            arguments = arguments | {"num_envs": num_envs}
        make = replace(self.make, arguments=arguments)
        skip = {} if self.frame_skip == 1 else {"frame_skip": int(self.frame_skip)}
        return batched(lambda: build_at("env.make", lambda: make.build(**skip)), num_envs, rows, flatten=self.flatten)
