"""Settings of the recurrent policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from rlexp.config import Count, Problem
from rlexp.policies.actor_critic import ActorCritic
from rlexp.policies.config.network import GaussianConfig, NetworkConfig

if TYPE_CHECKING:
    import torch
    from torchrl.envs import EnvBase

    from rlexp.policies.inputs import Inputs
    from rlexp.policies.recurrent import RecurrentCore


class RecurrentConfig(GaussianConfig, NetworkConfig):
    """Base of the recurrent policies (Hausknecht and Stone 2015; Kapturowski et al. 2019, stored state).

    An MLP reads the observation, a recurrent layer the MLP's output, and linear layers the recurrent layer's. The
    recurrent state is carried from step to step and from batch to batch, and reset where an episode ends. Gradients
    flow through sequences of consecutive steps, each from the state that was stored at its first step. The critic
    shares the recurrent layer, has one of its own, or none.

    Attributes:
        hidden_size: features of the recurrent layer.
        sequence_length: consecutive steps that gradients flow through, and that a minibatch keeps together.
        recurrent_critic: whether the critic has a recurrent layer. False is for one that sees the state itself, by
            privileged entries (``critic_keys``; Pinto et al. 2018): an MLP, which may read others than the actor.
        distribution: over actions; ``auto`` takes categorical, tanh_normal or normal, whichever fits first.
    """

    recurrent = True
    recurrent_layer: ClassVar[Literal["GRU", "LSTM"]]

    hidden_size: Count
    sequence_length: Count
    recurrent_critic: bool
    distribution: Literal["auto", "tanh_normal", "normal", "categorical"]

    def problems(self) -> Iterator[Problem]:
        """A critic that shares the actor's layers is recurrent."""
        yield from super().problems()
        if self.shared and not self.recurrent_critic:
            yield Problem("recurrent_critic", "must be true with policy.shared=true, which shares the layer.", "false")

    def choice(self, fitting: list[str]) -> str:
        """The one named, or the first that fits."""
        return fitting[0] if self.distribution == "auto" and fitting else self.distribution

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Actor and critic on one recurrent layer, or one each, or the actor alone on one."""
        from tensordict.nn import TensorDictModule
        from torch import nn
        from torchrl.modules import ValueOperator

        from rlexp.policies.building import orthogonal_, probabilistic_actor, set_bias
        from rlexp.policies.recurrent import CARRIED, STATE, RecurrentActor, RecurrentCritic

        head = self.head(env, device)
        # The actor carries the critic's recurrent state on as well, and so reads all that the critic reads.
        alike = "policy.recurrent_critic=true" if self.recurrent_critic else None
        actor_inputs, critic_inputs = self.inputs(env, alike)
        width, length = int(self.hidden_size), int(self.sequence_length)
        core, output = self._core(actor_inputs), nn.Linear(width, head.outputs)
        critic_core = self._core(critic_inputs) if self.recurrent_critic and not self.shared else None
        value_output = nn.Linear(width if self.recurrent_critic else int(self.num_cells[-1]), 1)
        values: nn.Module
        if self.recurrent_critic:
            values = RecurrentCritic(critic_core or core, value_output, length, shared=self.shared)
        else:
            values = critic_inputs.reading(nn.Sequential(self.perceptron(critic_inputs.shape.numel()), value_output))
        if self.orthogonal:
            own = self.own_parts(actor_inputs, core, "actor")
            orthogonal_(nn.Sequential(core, output), self.last_layer_gain, own)
            own = self.own_parts(critic_inputs, core, "critic")
            orthogonal_(value_output if self.shared else values, 1.0, own)
        if head.bias is not None:
            set_bias(output, head.bias)
        network = RecurrentActor(core, nn.Sequential(output, head.module), critic_core, length)
        read = [*actor_inputs.keys, *CARRIED]
        module = TensorDictModule(network.to(device), in_keys=read, out_keys=[*head.keys, ("next", STATE)])
        critic = ValueOperator(values.to(device), in_keys=read if self.recurrent_critic else critic_inputs.keys)
        return ActorCritic(probabilistic_actor(module, head, env, device), critic, length)

    def _core(self, inputs: Inputs) -> RecurrentCore:
        from torch import nn

        from rlexp.policies.recurrent import RecurrentCore

        layer = getattr(nn, self.recurrent_layer)
        rnn = layer(int(self.num_cells[-1]), int(self.hidden_size), batch_first=True)
        return RecurrentCore(inputs.reading(self.perceptron(inputs.shape.numel())), rnn)


class GRUConfig(RecurrentConfig):
    """A gated recurrent unit (Cho et al. 2014)."""

    recurrent_layer = "GRU"


class LSTMConfig(RecurrentConfig):
    """A long short-term memory (Hochreiter and Schmidhuber 1997)."""

    recurrent_layer = "LSTM"
