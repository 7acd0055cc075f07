"""Settings of the recurrent policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from rlexp.config import Count
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
    shares the recurrent layer, or has one of its own.

    Attributes:
        hidden_size: features of the recurrent layer.
        sequence_length: consecutive steps that gradients flow through, and that a minibatch keeps together.
        distribution: over actions; ``auto`` takes categorical, tanh_normal or normal, whichever fits first.
    """

    recurrent_layer: ClassVar[Literal["GRU", "LSTM"]]

    hidden_size: Count
    sequence_length: Count
    distribution: Literal["auto", "tanh_normal", "normal", "categorical"]

    def choice(self, fitting: list[str]) -> str:
        """The one named, or the first that fits."""
        return fitting[0] if self.distribution == "auto" and fitting else self.distribution

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Actor and critic on one recurrent layer, or one each."""
        from tensordict.nn import TensorDictModule
        from torch import nn
        from torchrl.modules import ValueOperator

        from rlexp.policies.building import orthogonal_, probabilistic_actor, set_bias
        from rlexp.policies.recurrent import CARRIED, STATE, RecurrentActor, RecurrentCritic

        head = self.head(env, device)
        # The actor carries the critic's recurrent state on as well, and so reads all that the critic reads.
        actor_inputs, critic_inputs = self.inputs(env, "a recurrent policy")
        width, length = int(self.hidden_size), int(self.sequence_length)
        core = self._core(actor_inputs)
        output = nn.Linear(width, head.outputs)
        critic_core = core if self.shared else self._core(critic_inputs)
        value_output = nn.Linear(width, 1)
        if self.orthogonal:
            orthogonal_(nn.Sequential(core, output), last_gain=self.last_layer_gain)
            orthogonal_(value_output if self.shared else nn.Sequential(critic_core, value_output), last_gain=1.0)
        if head.bias is not None:
            set_bias(output, head.bias)
        network = RecurrentActor(core, nn.Sequential(output, head.module), None if self.shared else critic_core, length)
        read = [*actor_inputs.keys, *CARRIED]
        module = TensorDictModule(network.to(device), in_keys=read, out_keys=[*head.keys, ("next", STATE)])
        values = RecurrentCritic(critic_core, value_output, length, shared=self.shared)
        critic = ValueOperator(values.to(device), in_keys=read)
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
