"""Relative entropy pathwise policy optimisation: the policy ascends a Q critic within a KL bound."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

from rlexp.experiment import ExperimentConfig
from rlexp.kernels.scan import discounted_sums
from rlexp.losses import REPPOConfig
from rlexp.optim.schedules import load_schedule
from rlexp.optim.weights import flatten
from rlexp.policies import ActorCritic
from rlexp.policies.action_values import ActionValue
from rlexp.training.learners.batches import clip_grad_norm, explained_variance, minibatches, stacked
from rlexp.training.learners.critic import part
from rlexp.training.learners.reward_norm import RewardNorm, take_norms


class REPPOLearner:
    r"""REPPO (Voelcker et al. 2025): a Q critic that learns lambda-returns, and a policy that follows its gradient.

    The critic $Q(s, a)$ learns, on the newest batch alone, the returns of the policy that acted with a bonus
    $-\alpha \log \pi(a \mid s)$ for its entropy. The policy takes the pathwise gradient of
    $\mathbb{E}[Q(s, a) - \alpha \log \pi(a \mid s)]$, which needs no advantage, at the states whose KL from the policy
    that acted is below ``max_kl``, and at the others that of $-\beta\, \mathrm{KL}$. Both weights are learned:
    $\alpha$ rises where the entropy is below its target, and $\beta$ where the KL is above ``max_kl``.

    Entropies are those of actions with their bounds at -1 and 1.

    Args:
        config: the checked config; its loss is a `REPPOConfig`.
        networks: what it trains, with an `ActionValue` as the critic; their parameters become views of one vector,
            ``weights``.
        device: where the networks are and the batches come to.

    Raises:
        ConfigError: an optimizer or a schedule cannot be built with these settings.
    """

    def __init__(self, config: ExperimentConfig, networks: ActorCritic, device: torch.device) -> None:
        assert isinstance(config.loss, REPPOConfig)
        self.config, self.loss, self.networks = config, config.loss, networks
        self.critic = cast("ActionValue", networks.critic.module)
        self._entries = list(networks.critic.in_keys[:-1])
        actor, critic = networks.split_parameters()
        self.weights = flatten([*actor, *critic])
        first = sum(parameter.numel() for parameter in actor)
        self._actor, self._critic = part(self.weights, None, first), part(self.weights, first, None)
        self._actor_parameters = actor
        initial = torch.tensor([log(self.loss.alpha), log(self.loss.beta)], device=device)
        self.multipliers = flatten([nn.Parameter(initial)])
        optim, batches = config.optim.model_copy(update={"critic_lr": None}), config.num_batches
        slower = optim.model_copy(update={"lr": config.optim.critic_lr or config.optim.lr})
        self._built = {
            "actor": optim.build(self._actor, actor, [], batches, kl=False),
            "critic": slower.build(self._critic, critic, [], batches, kl=False),
        }
        # Adam whatever trains the networks: weight decay, say, would draw alpha and beta to 1.
        self._multiplier_optimizer = torch.optim.Adam([self.multipliers], self.loss.multiplier_lr, eps=1e-5, fused=True)
        self.reward_norm: RewardNorm | None = None
        if self.loss.normalize_reward:
            self.reward_norm = RewardNorm(config.env.num_envs, self.loss.gamma).to(device)

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """Train critic and policy for ``num_epochs`` epochs on one batch ``[num_envs, steps]``.

        Rewards are normalised in place, and the critic's targets are written into the batch.

        Returns:
            Metrics: means over the minibatches; ``loss/kl`` and ``loss/entropy`` over those of the last epoch.
        """
        lr = float(self._built["actor"][1].get_last_lr()[0])
        if self.reward_norm is not None:
            batch["next", "reward"] = self.reward_norm(batch["next", "reward"], batch["next", "done"])
        outside = self.targets(batch)
        keys = [*self.networks.actor.in_keys, *self._entries, "action", "loc", "scale", "value_target", "next_features"]
        records: list[dict[str, Tensor]] = []
        for _ in range(self.config.num_epochs):
            last = [
                self.critic_step(minibatch) | self.actor_step(minibatch)
                for minibatch in minibatches(batch, list(dict.fromkeys(keys)), self.config.minibatch_size)
            ]
            records += last
        for _, scheduler in self._built.values():
            scheduler.step()
        means = {name: values.mean() for name, values in stacked(records).items()}
        means |= {name: values.mean() for name, values in stacked(last).items() if name in ("kl", "entropy")}
        alpha, beta = self.multipliers.detach().exp()
        grad_norm = means.pop("grad_norm").item()
        return {f"loss/{name}": value.item() for name, value in means.items()} | {
            "loss/alpha": alpha.item(),
            "loss/beta": beta.item(),
            "loss/explained_variance": explained_variance(batch["state_action_value"], batch["value_target"]),
            "loss/outside_bins": outside,
            "optim/grad_norm": grad_norm,
            "train/lr": lr,
        }

    @torch.no_grad()
    def targets(self, batch: TensorDictBase) -> float:
        r"""Write ``value_target``, ``state_action_value`` ``[num_envs, steps, 1]`` and ``next_features`` into a batch.

        A target is the lambda-return $G_t = \tilde r_t + \gamma ((1 - \lambda) Q(s_{t+1}, a') + \lambda G_{t+1})$ of
        rewards with the entropy of the next action, $\tilde r_t = r_t - \gamma \alpha \log \pi(a' \mid s_{t+1})$, with
        $a'$ drawn there. Where an episode is cut off or the batch ends, it is bootstrapped; where it terminates, 0.

        Returns:
            The share of the targets that lie outside of the critic's bins.
        """
        gamma, lmbda = self.loss.gamma, self.loss.lmbda
        after = batch["next"]
        loc, scale = self.parameters(after)
        latent = loc + scale * torch.randn_like(loc)
        judged = self.critic.judge([after[key] for key in self._entries], latent.tanh())
        entropy = -self.multipliers[0].exp() * log_prob(latent, loc, scale)
        alive = (~after["terminated"][..., 0]).to(loc)
        goes_on = (~after["done"][..., 0]).to(loc)
        goes_on[:, -1] = 0  # the batch ends
        decay = gamma * lmbda * goes_on
        known = after["reward"][..., 0] + gamma * alive * (entropy + (1 - lmbda * goes_on) * judged.value)
        target = discounted_sums(known, decay)
        batch["value_target"], batch["next_features"] = target[..., None], judged.features
        batch["state_action_value"] = self.networks.critic(*(batch[key] for key in self.networks.critic.in_keys))
        low, high = self.critic.bins.low, self.critic.bins.high
        return ((target < low) | (target > high)).double().mean().item()

    def critic_step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the critic towards the targets of a minibatch."""
        squashed = self.critic.squashed(minibatch["action"])
        judged = self.critic.judge([minibatch[key] for key in self._entries], squashed)
        wanted = self.critic.bins.probabilities(minibatch["value_target"][:, 0])
        loss = cross_entropy(judged.logits, wanted)
        embedding = mse_loss(self.critic.predictor(judged.features), minibatch["next_features"])
        self._zero(self._critic)
        (loss + self.loss.embedding_coeff * embedding).backward()
        clip_grad_norm(self._critic, self.config.max_grad_norm)
        self._built["critic"][0].step()
        return {"critic": loss.detach(), "embedding": embedding.detach()}

    def actor_step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the policy and of the two multipliers on a minibatch."""
        alpha, beta = self.multipliers.detach().exp()
        loc, scale = self.parameters(minibatch)
        latent = loc + scale * torch.randn_like(loc)
        negative_entropy = log_prob(latent, loc, scale)
        value = self.critic.judge([minibatch[key] for key in self._entries], latent.tanh()).value
        kl = gaussian_kl((minibatch["loc"], minibatch["scale"]), (loc, scale))
        within = kl.detach() < self.loss.max_kl
        objective = torch.where(within, alpha * negative_entropy - value, beta * kl).mean()
        self._zero(self._actor)
        objective.backward(inputs=self._actor_parameters)
        norm = clip_grad_norm(self._actor, self.config.max_grad_norm)
        self._built["actor"][0].step()
        entropy, mean_kl = -negative_entropy.detach().mean(), kl.detach().mean()
        assert self.multipliers.grad is not None
        # Descent on alpha (entropy - target) - beta (kl - max_kl), by the logarithms of alpha and beta.
        self.multipliers.grad[0] = alpha * (entropy - self.loss.target_entropy * loc.shape[-1])
        self.multipliers.grad[1] = -beta * (mean_kl - self.loss.max_kl)
        self._multiplier_optimizer.step()
        record = {"objective": objective.detach(), "entropy": entropy, "kl": mean_kl, "grad_norm": norm}
        return record | {"within_kl": within.float().mean()}

    def parameters(self, entries: Mapping[str, Tensor] | TensorDictBase) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the Gaussian before squashing, at observations with these entries."""
        network = self.networks.actor.module[0]
        loc, scale = network(*(entries[key] for key in network.in_keys))
        return loc, scale

    def _zero(self, weights: nn.Parameter) -> None:
        assert weights.grad is not None
        weights.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, schedules, multipliers, the critic's range and statistics; the networks are not included."""
        optimizers = {name: optimizer for name, (optimizer, _) in self._built.items()}
        optimizers["multipliers"] = self._multiplier_optimizer
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, (_, scheduler) in self._built.items()},
            "multipliers": self.multipliers.detach().clone(),
            "range": [self.critic.bins.low, self.critic.bins.high],
            "reward_norm": {} if self.reward_norm is None else self.reward_norm.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, perhaps over more or fewer batches than it was taken in."""
        for name, (optimizer, scheduler) in self._built.items():
            optimizer.load_state_dict(state["optimizers"][name])
            load_schedule(scheduler, state["schedulers"][name])
        self._multiplier_optimizer.load_state_dict(state["optimizers"]["multipliers"])
        with torch.no_grad():
            self.multipliers.copy_(state["multipliers"])
        if self.reward_norm is not None:
            self.reward_norm.load_state_dict(state["reward_norm"])

    def warm_start(self, state: Mapping[str, Any]) -> None:
        """Take the running statistics of another run's `state_dict`.

        Raises:
            RuntimeError: its critic's values mean something else, by their range or the scale of the rewards.
        """
        own = [self.critic.bins.low, self.critic.bins.high]
        if (other := state.get("range", own)) != own:
            raise RuntimeError(f"its critic has [policy.v_min, policy.v_max] = {other!r:.80}, and this run's {own}")
        take_norms(self.reward_norm, None, state)

    def begin_episodes(self) -> None:
        """Forget the discounted returns of the current episodes."""
        if self.reward_norm is not None:
            self.reward_norm.discounted.zero_()


def log_prob(latent: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The log-density ``[...]`` of actions ``tanh(latent)`` of a squashed Gaussian, all ``[..., actions]``."""
    gaussian = -0.5 * ((latent - loc) / scale) ** 2 - scale.log() - 0.5 * log(2 * torch.pi)
    slope = 2 * (log(2) - latent - softplus(-2 * latent))  # log(1 - tanh(latent)^2), which loses no digits
    return (gaussian - slope).sum(-1)


def gaussian_kl(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """The KL ``[...]`` from one diagonal Gaussian to another, each by mean and standard deviation ``[..., actions]``.

    Squashing both changes nothing of it.
    """
    (old_loc, old_scale), (loc, scale) = old, new
    terms = (scale / old_scale).log() + (old_scale**2 + (old_loc - loc) ** 2) / (2 * scale**2) - 0.5
    return terms.sum(-1)
