"""Any loss module of torchrl, one call a minibatch."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from rlexp.policies import ActorCritic


class TorchRLLoss(nn.Module):
    """Gives a ``LossModule`` the steps of a minibatch, advantage and value target included, and logs all it returns.

    Args:
        loss: any loss of torchrl that reads an advantage.
        networks: what it trains.
    """

    def __init__(self, loss: LossModule, networks: ActorCritic) -> None:
        super().__init__()
        self.loss = loss
        self._sequence_length = networks.sequence_length
        names = loss.tensor_keys
        # Not the loss's own in_keys: those are for a loss that computes its advantage, from consecutive steps.
        keys = [*networks.actor.in_keys, *networks.critic.in_keys]
        keys += [names.action, names.sample_log_prob, names.advantage, names.value_target]
        self.step_keys: list[str] = list(dict.fromkeys(keys))
        self._kl = next((key for key in ("kl", "kl_approx") if key in loss.out_keys), None)

    @property
    def tells_kl(self) -> bool:
        """Whether it measures how far the policy has come, as torchrl's variants of PPO do."""
        return self._kl is not None

    @property
    def coefficients(self) -> dict[str, Tensor]:
        """The scalars that the loss holds; the live tensors."""
        return dict(self.loss.named_buffers(recurse=False))

    def prepare(self, batch: TensorDictBase) -> None:
        """Nothing is known of the loss that could be done once for all epochs."""

    def losses(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss returns for a minibatch ``[n, ...]``."""
        size, length = len(next(iter(minibatch.values()))), self._sequence_length
        steps = TensorDict(minibatch, batch_size=[size])
        if length > 1:
            steps = steps.unflatten(0, (size // length, length))
        return dict(self.loss(steps).items())

    def means(self, records: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over minibatches."""
        return {name: record.mean() for name, record in records.items()}

    def divergence(self, records: dict[str, Tensor]) -> Tensor:
        """Mean over minibatches of the loss's own measure."""
        assert self._kl is not None
        return records[self._kl].mean()

    def adapt(self, records: dict[str, Tensor]) -> None:
        """What adapts in a loss of torchrl does so with every call."""
