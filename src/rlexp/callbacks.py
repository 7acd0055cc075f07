"""Named points of the training loop where code of the user's own can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensordict import TensorDictBase

    from rlexp.agent.evaluation import Evaluation
    from rlexp.training.trainer import Trainer


class Callback:
    """Subclass it, override what you need, and name it in the config: ``callbacks.mine._target_=my_module.Mine``.

    A callback sees the live trainer; what it draws from the global random generators changes the run that follows.
    A resumed run builds it anew; what it must remember is what `state` gives.
    """

    def after_collect(self, trainer: Trainer, batch: TensorDictBase) -> None:
        """A batch ``[num_envs, steps]`` was collected; rewards are the environment's own. May change it in place."""

    def after_update(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """The networks were trained on a batch. Entries added to ``metrics`` are logged with the rest of the row."""

    def after_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """An evaluation has ended."""

    def at_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint was saved."""

    def state(self) -> dict[str, Any]:
        """What a resumed run must know of it: numbers, strings, arrays, tensors, containers of them."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
