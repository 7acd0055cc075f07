"""Value targets in units of their running standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from rlexp.config import ConfigError, Problem
from rlexp.distributed import ALONE, Group
from rlexp.envs.normalization import Moments
from rlexp.policies.encoders import Encoded
from rlexp.policies.recurrent import RecurrentCritic


class ValueNorm(nn.Module):
    r"""The scale $s = \sqrt{\mathrm{Var}[G] + \epsilon}$ of the value targets $G$ seen so far.

    The critic learns $G / s$, and its output times $s$ is the value; rewards and advantages keep their units, as in
    Tianshou (Weng et al. 2022). Nothing is centred: a critic that knows nothing says 0. Each batch is counted once,
    before it is scaled, by its targets before the update. When $s$ changes, the critic's last layer is rescaled to
    preserve its values (van Hasselt et al. 2016, proposition 1).

    Args:
        critic: the network whose output is in these units.
        eps: $\epsilon$, keeps a task without rewards finite.
        group: the learners, whose targets together make a batch.

    Raises:
        ConfigError: the critic does not end in a linear layer that could be rescaled.
    """

    def __init__(self, critic: nn.Module, eps: float = 1e-8, group: Group = ALONE) -> None:
        super().__init__()
        self.eps, self._group = eps, group
        self.moments = Moments()
        output = _output_layer(critic)
        if output is None:
            message = "rescales the critic's last layer, which must be a linear one: use loss.normalize_reward=true."
            raise ConfigError([Problem("loss.normalize_value", message, "true")])
        self._output = list(output.parameters())  # a list is no submodule, whose weights would be saved twice

    @property
    def scale(self) -> Tensor:
        """$s$; 1 before the first batch."""
        return (self.moments.var + self.eps).sqrt()

    @torch.no_grad()
    def update(self, target: Tensor) -> Tensor:
        """Take in the value targets of a new batch, of any shape.

        Returns:
            The factor that the critic's outputs have now, against those before. It is 1 with the first batch: before
            it they were in no unit.
        """
        before = self.scale if self.moments.count else None
        self.moments.update(target.flatten(), self._group)
        factor = torch.ones_like(self.scale) if before is None else before / self.scale
        for parameter in self._output:
            parameter.mul_(factor.to(parameter))
        return factor.to(target)

    def forward(self, target: Tensor) -> Tensor:
        """Value targets of any shape in units of the scale."""
        return target / self.scale.to(target)


def _output_layer(network: nn.Module) -> nn.Linear | None:
    """The linear layer that a network's only output comes from; None where there is none, or it is not known."""
    if isinstance(network, Encoded):
        return _output_layer(network.network)
    if isinstance(network, RecurrentCritic):
        return _output_layer(network.head)
    if isinstance(network, nn.Sequential) and type(network) in (nn.Sequential, MLP):
        return _output_layer(network[-1])
    return network if type(network) is nn.Linear and network.out_features == 1 else None
