"""Products with the Fisher matrix of a policy, written out for Gaussians whose mean is a plain MLP.

Reference: `rlexp.training.learners.natural_gradient.fisher_product`, which differentiates the KL twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale
from torch import Tensor, nn

from rlexp.kernels.distributions import Gaussian, Parts
from rlexp.kernels.mlp import MLPLayers, MLPTangents, body_and_head
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.policies import ActorCritic
from rlexp.policies.heads import both_ways


class WrittenOutFisher:
    r"""$v \mapsto (F + \lambda I) v$ for a Gaussian with the mean $\mu_\theta(s)$ and a scale $\sigma$ of its own.

    $F = \mathbb{E}[J^\top \operatorname{diag}(\sigma^{-2}) J]$ for the weights of the mean, with its Jacobian $J$, and
    $2 (\partial \log \sigma / \partial \rho)^2$ for the scale's parameter $\rho$: a pass of tangents forwards, and one
    backwards (Schulman et al. 2015, appendix C.1).

    Args:
        networks: whose actor it is.
        parameters: the actor's, in the order of the vectors.

    Raises:
        UnsupportedError: the actor is of another kind.
    """

    def __init__(self, networks: ActorCritic, parameters: Sequence[nn.Parameter]) -> None:
        parts = Parts.of(networks.actor)
        if parts is None or not isinstance(parts.family, Gaussian):
            raise UnsupportedError("the actor's distribution is not a Gaussian without bounds")
        body, head = body_and_head(parts.network) or (None, None)
        if body is None or not isinstance(head, AddStateIndependentNormalScale):
            raise UnsupportedError("the actor's scale depends on the observation, or its network has encoders")
        mean = MLPLayers.of(body)
        if mean is None:
            raise UnsupportedError("the actor is not an MLP of linear layers with Tanh or ReLU")
        if not (mean.trained and all(p.requires_grad for p in head.parameters())):
            raise UnsupportedError("weights are frozen")
        self._reads, self._mean, self._head = parts.reading, MLPTangents(mean), head
        self._of_mean = mean.parameters
        self._parameters = list(parameters)

    def __call__(self, steps: TensorDictBase, damping: float) -> Callable[[Tensor], Tensor]:
        """The product, at the actor's current weights, over ``steps`` ``[n]``."""
        with torch.no_grad():
            (inputs,) = self._reads.inputs({key: steps[key] for key in self._reads.keys})
            hidden = self._mean.hidden(inputs)
            like = inputs.new_zeros(self._head.state_independent_scale.shape)
        own = list(self._head.parameters())
        with torch.enable_grad(), both_ways():
            scale = self._head(like)[1]
            slopes = torch.autograd.grad(scale.log().sum(), own) if own else ()
        scale = scale.detach()
        weight = scale.square().reciprocal() / len(inputs)

        def product(vector: Tensor) -> Tensor:
            shares = vector.split([parameter.numel() for parameter in self._parameters])
            tangent = {p: share.view_as(p) for p, share in zip(self._parameters, shares, strict=True)}
            by_mean = self._mean.forward(hidden, [tangent[p] for p in self._of_mean])
            found = dict(zip(self._of_mean, self._mean.backward(hidden, by_mean * weight), strict=True))
            found |= {p: 2 * slope.square() * tangent[p] for p, slope in zip(own, slopes, strict=True)}
            return torch.cat([found[p].reshape(-1) for p in self._parameters]) + damping * vector

        return torch.no_grad()(product)
