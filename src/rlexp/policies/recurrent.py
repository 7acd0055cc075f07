"""Recurrent networks: one step at a time to act, whole sequences to learn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import InitTracker, TensorDictPrimer, Transform, TransformedEnv
from torchrl.modules import ValueOperator

STATE = "recurrent_state"
CARRIED = ["is_init", STATE]
"""What recurrent networks read besides the entries of the observation, and after them."""


class RecurrentCore(nn.Module):
    """An encoder and one layer of ``torch.nn.GRU`` or ``torch.nn.LSTM``.

    torchrl's ``GRUModule`` and ``LSTMModule`` take two to four times as long: they make tensordicts of padded
    trajectories, where this calls torch's own kernel once for each stretch in which no episode begins.

    Args:
        encoder: reads the entries of observations.
        rnn: reads what the encoder gives; ``batch_first``.

    Attributes:
        state_size: width of the recurrent state: a GRU's hidden state, or an LSTM's hidden state and cell state.
    """

    def __init__(self, encoder: nn.Module, rnn: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.encoder, self.rnn = encoder, rnn
        self.state_size = rnn.hidden_size * (2 if isinstance(rnn, nn.LSTM) else 1)

    def step(self, observation: Sequence[Tensor], is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            observation: its entries, each ``[n, *entry]``.
            is_init: whether an episode begins here ``[n, 1]``: the state is zero there.
            state: the recurrent state before the step ``[n, state_size]``.

        Returns:
            Features ``[n, hidden_size]`` and the recurrent state after the step.
        """
        features, state = self._run(self.encoder(*observation)[:, None], state.masked_fill(is_init, 0))
        return features[:, 0], state

    def sequences(self, observation: Sequence[Tensor], is_init: Tensor, state: Tensor) -> Tensor:
        """Features ``[n, length, hidden_size]`` of sequences of consecutive steps, episodes ending anywhere in them.

        Args:
            observation: its entries, each ``[n, length, *entry]``.
            is_init: ``[n, length, 1]``.
            state: the recurrent state before the first step ``[n, state_size]``.
        """
        encoded = self.encoder(*observation)
        length = encoded.shape[1]
        starts = [0, *(is_init[:, 1:, 0].any(0).nonzero()[:, 0] + 1).tolist(), length]
        features: list[Tensor] = []
        for start, stop in pairwise(starts):
            stretch, state = self._run(encoded[:, start:stop], state.masked_fill(is_init[:, start], 0))
            features.append(stretch)
        return torch.cat(features, 1)

    def _run(self, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.rnn, nn.GRU):
            features, hidden = self.rnn(encoded, state[None])
            return features, hidden[0]
        hidden, cell = (part.contiguous() for part in state[None].chunk(2, -1))
        features, (hidden, cell) = self.rnn(encoded, (hidden, cell))
        return features, torch.cat([hidden[0], cell[0]], -1)


class RecurrentActor(nn.Module):
    """From steps or sequences to a distribution's parameters and the next recurrent state.

    While acting it advances the states of both networks, its own first, so that a batch holds both.

    Args:
        core: the actor's.
        head: from features to the distribution's parameters, one or more.
        critic_core: the critic's, where it has one of its own.
        sequence_length: consecutive steps of a training sequence.
    """

    def __init__(
        self, core: RecurrentCore, head: nn.Module, critic_core: RecurrentCore | None, sequence_length: int
    ) -> None:
        super().__init__()
        self.core, self.head, self.critic_core, self.sequence_length = core, head, critic_core, sequence_length

    @property
    def state_size(self) -> int:
        """Width of the recurrent state, the critic's included."""
        return self.core.state_size + (0 if self.critic_core is None else self.critic_core.state_size)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Advance by one step, or evaluate whole sequences.

        Args:
            inputs: the entries of the observation, each ``[n, *entry]``, or of sequences ``[n, length, *entry]``;
                whether an episode begins there ``[n, 1]`` or ``[n, length, 1]``; and the recurrent state before each
                step ``[n, state_size]`` or ``[n, length, state_size]``.

        Returns:
            The distribution's parameters, and the state after the steps; for sequences ``state`` unchanged.
        """
        *observation, is_init, state = inputs
        own = state[..., : self.core.state_size]
        if is_init.dim() == 3:
            features = self.core.sequences(observation, is_init, own[:, 0])
        else:
            features, after = self.core.step(observation, is_init, own)
            if self.critic_core is not None:
                _, critic_state = self.critic_core.step(observation, is_init, state[..., self.core.state_size :])
                after = torch.cat([after, critic_state], -1)
            state = after
        parameters = self.head(features)
        return (*(parameters if isinstance(parameters, tuple) else (parameters,)), state)


class RecurrentCritic(nn.Module):
    """From steps or sequences to values.

    Args:
        core: the actor's, or the critic's own.
        head: from features to a value.
        shared: whether the core is the actor's.
        sequence_length: consecutive steps of a training sequence.
    """

    def __init__(self, core: RecurrentCore, head: nn.Module, sequence_length: int, *, shared: bool) -> None:
        super().__init__()
        self.core, self.head, self.shared, self.sequence_length = core, head, shared, sequence_length

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values ``[n, 1]``, or of sequences ``[n, length, 1]``; arguments as in `RecurrentActor`."""
        *observation, is_init, state = inputs
        size = self.core.state_size
        own = state[..., :size] if self.shared else state[..., -size:]
        if is_init.dim() == 3:
            features = self.core.sequences(observation, is_init, own[:, 0])
        else:
            features, _ = self.core.step(observation, is_init, own)
        value: Tensor = self.head(features)
        return value


def recurrent_network(actor: TensorDictModuleBase) -> RecurrentActor | None:
    """The recurrent network of an actor; None for a feed-forward one."""
    return next((module for module in actor.modules() if isinstance(module, RecurrentActor)), None)


def carry_state(env: TransformedEnv, actor: TensorDictModuleBase) -> None:
    """Let torchrl's own loops carry the recurrent state of ``actor``, by ``InitTracker`` and ``TensorDictPrimer``."""
    network = recurrent_network(actor)
    if network is not None:
        env.append_transform(InitTracker())
        env.append_transform(TensorDictPrimer({STATE: Unbounded(network.state_size)}, expand_specs=True))


def carries_state(env: TransformedEnv) -> bool:
    """Whether `carry_state` gave ``env`` something to carry."""
    return any(isinstance(transform, TensorDictPrimer) and carries(transform) for transform in env.transform)


def carries(transform: Transform) -> bool:
    """Whether a transform is one that `carry_state` appends."""
    if type(transform) is TensorDictPrimer:
        return set(transform.primers.keys()) == {STATE}
    return type(transform) is InitTracker


def state_values(critic: ValueOperator, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """The critic's values of the states that the steps of a batch ``[num_envs, steps]`` start from and lead to.

    A recurrent critic evaluates the training sequences, each from the state stored at its first step. Its value of the
    state that a step leads to is that of the next step's start, unless the episode or the batch ends there.

    Returns:
        Two tensors ``[num_envs, steps, 1]``.
    """
    network, after = critic.module, batch["next"]
    if not isinstance(network, RecurrentCritic):
        value, next_value = (critic(steps.select(*critic.in_keys))["state_value"] for steps in (batch, after))
        return value, next_value
    entries = [batch[key].unflatten(1, (-1, network.sequence_length)).flatten(0, 1) for key in critic.in_keys]
    value = network(*entries).view(*batch.shape, 1)
    ends = after["done"][..., 0].clone()
    ends[:, -1] = True
    next_value = value.roll(-1, 1)
    next_value[ends] = network(*(after[key][ends] for key in critic.in_keys))
    return value, next_value
