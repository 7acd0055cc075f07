"""torchrl's single-process collector with a state that resumes it exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import TransformedEnv

from rlexp.seeding import unmoved_generators


class SyncCollector(Collector):
    """``torchrl.collectors.Collector``, whose ``state_dict`` holds the carried transition.

    Args:
        env: the environments.
        actor: the policy.
        steps_per_batch: agent steps of one batch, all environments together.
        device: where the actor is and the batches go.

    Shapes:
        batches ``[num_envs, steps]``; entries as in the environment's specs, and ``("collector", "traj_ids")``.
    """

    def __init__(
        self, env: TransformedEnv, actor: TensorDictModuleBase, steps_per_batch: int, device: torch.device
    ) -> None:
        with unmoved_generators():  # it tries the policy to learn what that writes
            super().__init__(
                env,
                actor,
                frames_per_batch=steps_per_batch,
                total_frames=-1,
                policy_device=device,
                env_device=env.device,
                storing_device=device,
                split_trajs=False,
                trust_policy=True,
                auto_register_policy_transforms=False,
            )

    def state_dict(self) -> OrderedDict[str, Any]:
        """The carried transition and the number of the next trajectory; torchrl's own state dict has neither."""
        carried: dict[str, Any] = self._carrier.clone().to_dict()
        return OrderedDict(carried=carried, trajectories=self._traj_pool.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> None:
        """Continue from a `state_dict`; the simulators must be in the state of the same moment."""
        fresh = self._carrier  # type: ignore[has-type]
        self._carrier = TensorDict.from_dict(state_dict["carried"], batch_size=fresh.batch_size, device=fresh.device)
        self._traj_pool.load_state_dict(state_dict["trajectories"])
