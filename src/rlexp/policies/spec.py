"""What every policy is: a spec that builds an actor and a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlexp.config import ConfigError, Problem, Spec

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torchrl.data import TensorSpec
    from torchrl.envs import EnvBase
    from torchrl.modules import ProbabilisticActor, ValueOperator


@dataclass(frozen=True)
class ActorCritic:
    """The two networks that a run trains; they may share a trunk.

    Attributes:
        actor: reads ``observation`` ``[..., *observation]``, writes ``action`` and ``action_log_prob``.
        critic: reads ``observation``, writes ``state_value`` ``[..., 1]``.
        sequence_length: consecutive steps that a minibatch keeps together; 1 where each step stands for itself.
    """

    actor: ProbabilisticActor
    critic: ValueOperator
    sequence_length: int = 1

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of both, each once."""
        actor, critic = self.split_parameters()
        return [*actor, *critic]

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those that the actor's distribution depends on, a shared trunk among them, and the critic's others."""
        from rlexp.policies.recurrent import recurrent_network

        actor, network = dict.fromkeys(self.actor.parameters()), recurrent_network(self.actor)
        if network is not None and network.beside is not None:
            for carried in network.beside.parameters():  # the critic's, which the actor takes along
                del actor[carried]
        return list(actor), [p for p in dict.fromkeys(self.critic.parameters()) if p not in actor]


class PolicySpec(Spec):
    """Base of all policies."""

    def build(self, env: EnvBase, device: torch.device) -> ActorCritic:
        """Fresh networks that fit the environment's specs, on ``device``.

        Raises:
            ConfigError: the policy cannot act in this environment.
        """
        raise NotImplementedError


def distributions_for(spec: TensorSpec) -> list[str]:
    """The distributions over the actions of a spec, the default first; none where no shipped policy can act."""
    from torchrl.data import Bounded, Categorical, Unbounded

    match spec:
        case Categorical() if not spec.shape:
            return ["categorical"]
        case Bounded() if len(spec.shape) == 1 and spec.dtype.is_floating_point:
            return ["tanh_normal", "normal", "beta"]
        case Unbounded() if len(spec.shape) == 1 and spec.dtype.is_floating_point:
            return ["normal"]
    return []


def described(spec: TensorSpec) -> str:
    """The actions of a spec in words."""
    from torchrl.data import Bounded, Categorical, Unbounded

    match spec:
        case Categorical():
            return f"a choice among {spec.n}"
        case Bounded() | Unbounded():
            bounds = "within bounds" if isinstance(spec, Bounded) else "without bounds"
            return f"numbers {bounds} of shape {list(spec.shape)}"
    return f"a {type(spec).__name__} of shape {list(spec.shape)}"


def cannot_act(env: EnvBase, reason: str) -> ConfigError:
    """The error for a policy that does not fit an environment: the reason, and the options that fit."""
    action, observation = env.action_spec_unbatched, env.observation_spec_unbatched["observation"]
    distributions = distributions_for(action)
    match len(observation.shape):
        case 1 if distributions:
            options = [*distributions, "gru", "lstm"]
        case 3 if distributions:
            options = ["cnn"]
        case _:
            message = (
                f"{reason}. No shipped policy reads observations of shape {list(observation.shape)} and chooses "
                f"{described(action)}: change them by env.transforms, or write a policy of your own."
            )
            return ConfigError([Problem("policy", message)])
    *others, last = options
    fits = f"{', '.join(others)} or {last}" if others else last
    return ConfigError([Problem("policy", f"{reason}. What fits: policy={fits}.")])
