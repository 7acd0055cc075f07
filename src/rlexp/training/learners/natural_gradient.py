"""Natural gradient updates: one step of a given KL per batch by conjugate gradients, then passes of the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.nn.utils import parameters_to_vector

from rlexp.experiment import ExperimentConfig
from rlexp.kernels.select import Kernels
from rlexp.losses import NPGConfig, TRPOConfig
from rlexp.optim.weights import flatten
from rlexp.policies import ActorCritic
from rlexp.policies.heads import both_ways
from rlexp.training.learners.batches import explained_variance
from rlexp.training.learners.critic import CriticFit
from rlexp.training.learners.reward_norm import RewardNorm, take_norms

Product = Callable[[Tensor], Tensor]


class NaturalGradientLearner:
    r"""Natural policy gradient, and TRPO where the loss asks for a line search (Schulman et al. 2015, appendix C).

    The surrogate is $L(\theta) = \mathbb{E}[r(\theta) A]$ with the advantage $A$ normalised over the batch. Its step is
    $\sqrt{2 \delta / x^\top F x}\; x$ with $x = F^{-1} \nabla L$, where $F$ is the Fisher matrix of the policy, used
    only in products with vectors.

    Args:
        config: the checked config; its loss is an `NPGConfig`.
        networks: what it trains; their parameters become views of one vector, ``weights``.
        device: where the networks are and the batches come to.

    Raises:
        ConfigError: the policy shares parameters with the critic, or the optimizer cannot be built.
    """

    def __init__(self, config: ExperimentConfig, networks: ActorCritic, device: torch.device) -> None:
        assert isinstance(config.loss, NPGConfig)
        self.config, self.loss, self.networks = config, config.loss, networks
        self._actor, critic = networks.split_parameters()
        self.weights = flatten([*self._actor, *critic])
        self.critic = CriticFit(config, networks, self.weights, config.loss.loss_critic_type)
        estimator = config.loss.build_advantage(networks).to(device)
        self.value_norm = estimator.value_norm
        kernels = Kernels(config.use_kernels)
        self.advantage = kernels.advantage(estimator)
        self._fisher = kernels.fisher(networks, self._actor)
        self.reward_norm: RewardNorm | None = None
        if config.loss.normalize_reward:
            self.reward_norm = RewardNorm(config.env.num_envs, config.loss.gamma).to(device)

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """Improve the policy by one step, and the critic by ``num_epochs`` passes, on one batch ``[num_envs, steps]``.

        Rewards are normalised in place, and advantages and value targets are written into the batch.

        Returns:
            Metrics: ``loss/objective`` (the negative surrogate before the step), ``loss/kl`` (of the step),
            ``loss/step_fraction`` (of the full step; 0 where none was taken), and the critic's as for PPO.
        """
        lr = self.critic.lr
        if self.reward_norm is not None:
            batch["next", "reward"] = self.reward_norm(batch["next", "reward"], batch["next", "done"])
        self.advantage(batch)
        explained = explained_variance(batch["state_value"], batch["value_target"])
        metrics = self._improve_policy(batch.reshape(-1), self.loss.max_kl_at(progress))
        critic = self.critic.fit(batch)
        return metrics | {
            "loss/critic": critic["loss_critic"].item(),
            "loss/explained_variance": explained,
            "optim/grad_norm": critic["grad_norm"].item(),
            "train/lr": lr,
        }

    def _improve_policy(self, steps: TensorDictBase, max_kl: float) -> dict[str, float]:
        """One natural gradient step of a KL on ``steps`` ``[n]``."""
        advantage = steps["advantage"][:, 0]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

        def surrogate(policy: Distribution) -> Tensor:
            log_ratio: Tensor = policy.log_prob(steps["action"]) - steps["action_log_prob"]
            mean: Tensor = (log_ratio.exp() * advantage).mean()
            return mean

        with torch.no_grad():
            before = self._policy(steps)
        objective = surrogate(self._policy(steps))
        # A bounded deviation passes gradients by their sign in minimisation, so the negative is differentiated.
        gradient = -flat_gradient(-objective, self._actor)
        if self._fisher is None:
            with both_ways():
                policy = self._policy(steps)
            fisher = fisher_product(before, policy, self._actor, self.loss.damping)
        else:
            fisher = self._fisher(steps, self.loss.damping)
        direction = conjugate_gradients(fisher, gradient, self.loss.cg_iterations)
        curvature = direction.dot(fisher(direction))
        # A gradient of 0, where all advantages are equal, has no direction.
        step = direction * (2 * max_kl / curvature).sqrt() if curvature > 0 else torch.zeros_like(direction)
        with torch.no_grad():
            fraction, kl = self._take(step, max_kl, steps, before, surrogate, objective.detach())
        return {
            "loss/objective": -objective.item(),
            "loss/kl": kl.item(),
            "loss/step_fraction": fraction,
            "loss/entropy": -steps["action_log_prob"].mean().item(),
            "loss/gradient_norm": gradient.norm().item(),
        }

    def _take(
        self,
        step: Tensor,
        max_kl: float,
        steps: TensorDictBase,
        before: Distribution,
        surrogate: Callable[[Distribution], Tensor],
        objective: Tensor,
    ) -> tuple[float, Tensor]:
        """Take the step, or the largest fraction of it that the line search accepts; the fraction and the KL."""
        start = parameters_to_vector(self._actor)
        fraction = 1.0
        if not isinstance(self.loss, TRPOConfig):
            self._set(start + step)
            return fraction, kl_divergence(before, self._policy(steps)).mean()
        for _ in range(self.loss.backtracks):
            self._set(start + fraction * step)
            policy = self._policy(steps)
            kl = kl_divergence(before, policy).mean()
            if kl <= max_kl and surrogate(policy) > objective:
                return fraction, kl
            fraction *= self.loss.backtrack_factor
        self._set(start)
        return 0.0, torch.zeros(())

    def _set(self, vector: Tensor) -> None:
        """Copy a vector into the actor's parameters, which stay the same views."""
        offset = 0
        for parameter in self._actor:
            parameter.copy_(vector[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()

    def _policy(self, steps: TensorDictBase) -> Distribution:
        policy: Distribution = self.networks.actor.get_dist(steps.select(*self.networks.actor.in_keys))
        return policy

    def state_dict(self) -> dict[str, Any]:
        """The critic's optimizer and schedule, and running statistics; the networks are not included."""
        return self.critic.state_dict() | {
            "reward_norm": {} if self.reward_norm is None else self.reward_norm.state_dict(),
            "value_norm": {} if self.value_norm is None else self.value_norm.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, perhaps over more or fewer batches than it was taken in."""
        self.critic.load_state_dict(state)
        if self.reward_norm is not None:
            self.reward_norm.load_state_dict(state["reward_norm"])
        if self.value_norm is not None:
            self.value_norm.load_state_dict(state["value_norm"])

    def warm_start(self, state: Mapping[str, Any]) -> None:
        """Take the running statistics of another run's `state_dict`."""
        take_norms(self.reward_norm, self.value_norm, state)

    def begin_episodes(self) -> None:
        """Forget the discounted returns of the current episodes."""
        if self.reward_norm is not None:
            self.reward_norm.discounted.zero_()


def flat_gradient(
    value: Tensor, parameters: list[torch.nn.Parameter], *, retain_graph: bool = False, create_graph: bool = False
) -> Tensor:
    """The gradient of a scalar by all parameters, as one vector; 0 for those that it does not depend on."""
    retain_graph |= create_graph
    gradients = torch.autograd.grad(
        value, parameters, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
    )
    return parameters_to_vector(gradients)


def fisher_product(
    before: Distribution, policy: Distribution, parameters: list[torch.nn.Parameter], damping: float
) -> Product:
    r"""$v \mapsto (F + \lambda I) v$ with the Fisher matrix $F$ of a policy, the mean over its rows.

    $F$ is the Hessian, at the current parameters, of the KL from the policy as it is to the policy of the parameters
    (Schulman et al. 2015, appendix C.1).

    Args:
        before: the policy as it is, without a graph.
        policy: the same, differentiable by the parameters, evaluated in `rlexp.policies.heads.both_ways`.
        parameters: of the policy.
        damping: $\lambda$.
    """
    kl = kl_divergence(before, policy).mean()
    slope = flat_gradient(kl, parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        return flat_gradient(slope.dot(vector), parameters, retain_graph=True) + damping * vector

    return product


def conjugate_gradients(product: Product, target: Tensor, iterations: int, tolerance: float = 1e-10) -> Tensor:
    """Solve ``product(x) = target`` for a positive definite product (Hestenes and Stiefel 1952).

    Args:
        product: of the matrix with a vector.
        target: right-hand side ``[n]``.
        iterations: steps at most.
        tolerance: of the squared norm of the residual.
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual.dot(residual)
    for _ in range(iterations):
        if squared < tolerance:
            break
        image = product(direction)
        length = squared / direction.dot(image)
        x += length * direction
        residual -= length * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + squared / previous * direction
    return x
