"""What every environment has, whatever simulates it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlexp.config import Config, ConfigError, Count, Node, Problem, build_at

if TYPE_CHECKING:
    from torchrl.envs import EnvBase, Transform, TransformedEnv


class EnvConfig(Config):
    """What every environment has, whatever simulates it. Subclasses build the simulator.

    Attributes:
        name: names the run's folder and groups its results.
        num_envs: simulators stepped together.
        frame_skip: simulator frames that one action lasts; frames everywhere count simulator frames.
        init_random_steps: random steps that the observation statistics start from; they count as no frames.
        transforms: the torchrl transforms, in order; names are free.
    """

    name: str
    num_envs: Count
    frame_skip: Count
    init_random_steps: Count
    transforms: dict[str, Node]

    @property
    def has_own_code(self) -> bool:
        """Whether code of the user's own takes part, which may keep state where it cannot be seen."""
        return any(node.target.split(".")[0] not in ("torchrl", "rlexp") for node in self.transforms.values())

    def with_workers(self, frames: int, cores: int) -> EnvConfig:
        """The same, with as many processes or threads as step these frames fastest on these cores."""
        return self

    def on(self, device: object) -> EnvConfig:
        """The same, on a device where it leaves open on which."""
        return self

    def build_base(self, num_envs: int) -> EnvBase:
        """The bare simulators, batch size ``[num_envs]``, unseeded."""
        raise NotImplementedError

    def build(self, num_envs: int) -> TransformedEnv:
        """The simulators with the transforms, ready to be seeded.

        Raises:
            ConfigError: the simulator or a transform cannot be built with these settings.
        """
        from torchrl.envs import (
            Compose,
            FrameSkipTransform,
            RewardSum,
            StepCounter,
            TransformedEnv,
            VecNorm,
            VecNormV2,
        )

        from rlexp.envs.masks import masks_of
        from rlexp.envs.torchrl import clipping

        transforms = [build_at(f"env.transforms.{name}", node.build) for name, node in self.transforms.items()]
        for needed in (StepCounter, RewardSum):
            if not any(isinstance(transform, needed) for transform in transforms):
                message = f"must hold a torchrl.envs.{needed.__name__}: the metrics read what it counts."
                raise ConfigError([Problem("env.transforms", message)])
        refused = {
            FrameSkipTransform: "steps the simulators unnoticed, and drops the rewards in between: use env.frame_skip.",
            VecNorm | VecNormV2: "has statistics that no evaluation could freeze: use env/transforms=running.",
        }
        for name, transform in zip(self.transforms, transforms, strict=True):
            for kind, message in refused.items():
                if isinstance(transform, kind):
                    raise ConfigError([Problem(f"env.transforms.{name}", message)])
        base = self.build_base(num_envs)
        try:
            self._check_normalization(base, transforms)
            try:
                return TransformedEnv(clipping(base), Compose(*masks_of(base), *transforms), auto_unwrap=False)
            except ConfigError:
                raise
            except Exception as error:  # whatever a transform asks of an environment
                message = f"cannot be put around this environment: {type(error).__name__}: {error}"
                raise ConfigError([Problem("env.transforms", message)]) from error
        except BaseException:
            base.close(raise_if_closed=False)
            raise

    def _check_normalization(self, base: EnvBase, transforms: Sequence[Transform]) -> None:
        """Refuse to normalise an entry that does not exist or holds integers, such as an image."""
        from torchrl.envs import ObservationNorm

        from rlexp.envs.normalization import RunningObservationNorm
        from rlexp.envs.torchrl import entries

        seen = entries(base)  # as they are before any transform has made them anew
        made: set[str] = set()
        all_known = True
        for name, transform in zip(self.transforms, transforms, strict=True):
            if isinstance(transform, ObservationNorm):
                if isinstance(transform, RunningObservationNorm):
                    transform.choose(seen)
                for key in transform.in_keys:
                    if all_known and key not in seen.keys() | made:
                        hint = f"the environment observes {', '.join(seen)}: give env.transforms.{name}.in_keys."
                        raise ConfigError([Problem(f"env.transforms.{name}", f"normalises {key}, and {hint}")])
                    if key in seen.keys() - made and not seen[key].dtype.is_floating_point:
                        kind = f"{seen[key].dtype}".removeprefix("torch.")
                        message = f"normalises by statistics, and {key} is {kind} {list(seen[key].shape)}"
                        raise ConfigError([Problem(f"env.transforms.{name}", f"{message}: give env/transforms=none.")])
            try:
                keys = transform.out_keys or ()
            except NotImplementedError:  # torchrl's InitTracker asks its environment
                keys = ()
            made |= set(keys)
            all_known &= bool(keys)  # of others they are known once there is an environment
