"""Points of the training loop where code of the user's own can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torchrl.collectors import BaseCollector
    from torchrl.envs import TransformedEnv

    from rlexp.agent.evaluation import Evaluation
    from rlexp.experiment import ExperimentConfig
    from rlexp.policies import ActorCritic


class Training(Protocol):
    """What a callback sees of a `rlexp.Trainer`.

    Attributes:
        config: the checked config.
        env: the training environment, with its transforms.
        networks: actor and critic.
        collector: yields batches ``[num_envs, steps]``.
        learner: improves the networks on a batch (`rlexp.training.learners.Learner`).
        frames: simulator frames collected.
        iteration: batches collected.
    """

    config: ExperimentConfig
    env: TransformedEnv
    networks: ActorCritic
    collector: BaseCollector
    learner: Any
    frames: int
    iteration: int

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""

    def stop(self) -> None:
        """End the run after this batch; it is saved."""


class Callback:
    """Subclass it, override what you need, and name it in the config: ``callbacks.mine._target_=my_module.Mine``.

    A callback sees the live trainer; what its first three methods draw from the global random generators changes the
    run that follows. A resumed run builds it anew, and restores what `state` returned.
    """

    def after_collect(self, trainer: Training, batch: TensorDictBase) -> None:
        """A batch ``[num_envs, steps]`` was collected; rewards are the environment's own. May change it in place."""

    def after_update(self, trainer: Training, metrics: dict[str, float]) -> None:
        """The networks were trained on a batch. Entries added to ``metrics`` are logged with the rest of the row."""

    def after_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """An evaluation has ended."""

    def at_checkpoint(self, trainer: Training, path: Path) -> None:
        """A checkpoint was saved, with what `state` returned before; called again where a run is resumed from it."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to know: numbers, strings, arrays, tensors, containers of them."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; empty where the run was saved without this callback."""
