"""Networks with a memory: one step at a time to act, whole sequences to learn."""

from __future__ import annotations

from itertools import pairwise

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import InitTracker, TensorDictPrimer, TransformedEnv

STATE = "recurrent_state"
STEP_KEYS = ["observation", "is_init", STATE]


class Memory(nn.Module):
    """An encoder and one layer of ``torch.nn.GRU`` or ``torch.nn.LSTM``.

    torchrl's ``GRUModule`` and ``LSTMModule`` take two to four times as long: they make tensordicts of padded
    trajectories, where this calls torch's own kernel once for each stretch in which no episode begins.

    Args:
        encoder: reads observations.
        rnn: reads what the encoder gives; ``batch_first``.

    Attributes:
        state_size: numbers that it remembers of each episode: a GRU's hidden state, or an LSTM's and its cell state.
    """

    def __init__(self, encoder: nn.Module, rnn: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.encoder, self.rnn = encoder, rnn
        self.state_size = rnn.hidden_size * (2 if isinstance(rnn, nn.LSTM) else 1)

    def step(self, observation: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            observation: ``[n, *observation]``.
            is_init: whether an episode begins here ``[n, 1]``: nothing is remembered of the one before.
            state: what is remembered ``[n, state_size]``.

        Returns:
            Features ``[n, hidden_size]`` and what is remembered after the step.
        """
        features, state = self._run(self.encoder(observation)[:, None], state.masked_fill(is_init, 0))
        return features[:, 0], state

    def sequences(self, observation: Tensor, is_init: Tensor, state: Tensor) -> Tensor:
        """Features ``[n, length, hidden_size]`` of sequences of consecutive steps, episodes ending anywhere in them.

        Args:
            observation: ``[n, length, *observation]``.
            is_init: ``[n, length, 1]``.
            state: what was remembered before the first step ``[n, state_size]``.
        """
        encoded = self.encoder(observation)
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
    """From steps or sequences to a distribution's parameters and what is remembered.

    While it acts it carries what both networks remember, its own share first, so that a batch holds both.

    Args:
        memory: its own.
        head: from features to the distribution's parameters, one or more.
        beside: the critic's memory, if that is another.
        sequence_length: consecutive steps that are learned from together.
    """

    def __init__(self, memory: Memory, head: nn.Module, beside: Memory | None, sequence_length: int) -> None:
        super().__init__()
        self.memory, self.head, self.beside, self.sequence_length = memory, head, beside, sequence_length

    @property
    def state_size(self) -> int:
        """Numbers that are remembered of each episode."""
        return self.memory.state_size + (0 if self.beside is None else self.beside.state_size)

    def forward(self, observation: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """Act on steps, or look at sequences again.

        Args:
            observation: ``[n, *observation]``, or of sequences ``[n, length, *observation]``.
            is_init: whether an episode begins there ``[n, 1]`` or ``[n, length, 1]``.
            state: what was remembered before each step ``[n, state_size]`` or ``[n, length, state_size]``.

        Returns:
            The distribution's parameters, and what is remembered after the steps; for sequences ``state`` as it is.
        """
        own = state[..., : self.memory.state_size]
        if is_init.dim() == 3:
            features = self.memory.sequences(observation, is_init, own[:, 0])
        else:
            features, after = self.memory.step(observation, is_init, own)
            if self.beside is not None:
                _, others = self.beside.step(observation, is_init, state[..., self.memory.state_size :])
                after = torch.cat([after, others], -1)
            state = after
        parameters = self.head(features)
        return (*(parameters if isinstance(parameters, tuple) else (parameters,)), state)


class RecurrentCritic(nn.Module):
    """From steps or sequences to values.

    Args:
        memory: the actor's, or its own.
        head: from features to a value.
        shared: whether the memory is the actor's.
        sequence_length: consecutive steps that are learned from together.
    """

    def __init__(self, memory: Memory, head: nn.Module, sequence_length: int, *, shared: bool) -> None:
        super().__init__()
        self.memory, self.head, self.shared, self.sequence_length = memory, head, shared, sequence_length

    def forward(self, observation: Tensor, is_init: Tensor, state: Tensor) -> Tensor:
        """Values ``[n, 1]``, or of sequences ``[n, length, 1]``; arguments as in `RecurrentActor`."""
        size = self.memory.state_size
        own = state[..., :size] if self.shared else state[..., -size:]
        if is_init.dim() == 3:
            features = self.memory.sequences(observation, is_init, own[:, 0])
        else:
            features, _ = self.memory.step(observation, is_init, own)
        value: Tensor = self.head(features)
        return value


def recurrent_network(actor: TensorDictModuleBase) -> RecurrentActor | None:
    """The network of an actor with a memory; None for one that has none."""
    return next((module for module in actor.modules() if isinstance(module, RecurrentActor)), None)


def carry_state(env: TransformedEnv, actor: TensorDictModuleBase) -> None:
    """Let torchrl's own loops carry what ``actor`` remembers, by its ``InitTracker`` and ``TensorDictPrimer``."""
    network = recurrent_network(actor)
    if network is not None:
        env.append_transform(InitTracker())
        env.append_transform(TensorDictPrimer({STATE: Unbounded(network.state_size)}, expand_specs=True))


def carries_state(env: TransformedEnv) -> bool:
    """Whether `carry_state` gave ``env`` something to carry."""
    primers = [transform for transform in env.transform if isinstance(transform, TensorDictPrimer)]
    return any(set(primer.primers.keys()) == {STATE} for primer in primers)
