"""PPO's update: epochs of minibatches, each a clipped step of the optimizer along the gradient of the loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlexp.config import ConfigError, Problem
from rlexp.distributed import ALONE, POSITION, Group
from rlexp.experiment import ExperimentConfig
from rlexp.kernels.select import Kernels
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.losses import MinibatchLossConfig, PolicyLossConfig
from rlexp.losses.module import Gradient, Loss
from rlexp.machine import use_compiler
from rlexp.optim.schedules import KLAdaptive, load_schedule
from rlexp.optim.weights import flatten
from rlexp.policies import ActorCritic
from rlexp.training.learners.batches import clip_grad_norm, explained_variance, minibatches, stacked
from rlexp.training.learners.critic import CriticFit, part
from rlexp.training.learners.reward_norm import RewardNorm, take_norms

log = logging.getLogger(__name__)


class PPOLearner:
    """Proximal policy optimisation (Schulman et al. 2017, algorithm 1), for every loss that minibatches minimise.

    Args:
        config: the checked config.
        networks: what it trains; their parameters become views of one vector, ``weights``.
        device: where the networks are and the batches come to.
        group: the learners, each of whom has a share of a batch: together they make the updates of one that has all
            of it.

    Attributes:
        loss: torchrl's loss module; its coefficients are annealed and saved.
        minibatch_loss: ``loss``, or the kernel that stands in for it.
        gradient: writes the gradient of a minibatch's loss into ``weights.grad``.
        advantage: writes advantages and value targets into a batch.
        reward_norm: scales the rewards; None leaves them as they are.
        value_norm: scales the value targets; None leaves them as they are.
        critic: trains the critic after the policy, in passes of its own; None trains both by one loss.
        weights: all that is trained, ``[weights]``.
        optimizer: steps along the gradient.
        scheduler: of the learning rate, one step per batch.

    Raises:
        ConfigError: loss, optimizer or schedule cannot be built with these settings, or do not go together.
    """

    def __init__(
        self, config: ExperimentConfig, networks: ActorCritic, device: torch.device, group: Group = ALONE
    ) -> None:
        assert isinstance(config.loss, MinibatchLossConfig)
        self.config, self.networks, self.group, self._device = config, networks, group, device
        kernels = Kernels(config.use_kernels)
        changes: dict[str, object] = {"critic_coeff": 0.0} if config.critic_apart else {}
        self._standardized: list[str] = []
        if group.size > 1 and getattr(config.loss, "normalize_advantage", False):
            self._standardized.append("advantage")  # by those who know the whole minibatch
            changes["normalize_advantage"] = False
        self.loss = config.loss.model_copy(update=changes).build(networks).to(device)
        self.minibatch_loss = kernels.loss(self.loss, networks)
        estimator = config.loss.build_advantage(networks, group).to(device)
        self.value_norm = estimator.value_norm
        self.advantage = kernels.advantage(estimator)
        if group.size > 1 and isinstance(self.minibatch_loss, Loss):
            message = (
                "has no kernel with these settings, and several learners need one. Train with one, without torchrun."
            )
            raise ConfigError([Problem("loss", message, type(self.loss.module).__name__)])
        self.reward_norm: RewardNorm | None = None
        if config.loss.normalize_reward:
            self.reward_norm = RewardNorm(config.env.num_envs // group.size, config.loss.gamma, group=group).to(device)
        actor, critic = networks.split_parameters()
        self.weights = flatten([*actor, *critic])
        self.gradient = kernels.gradient(self.minibatch_loss, networks, self._compiles)
        self.critic: CriticFit | None = None
        self._trained = self.weights
        optim = config.optim
        if config.critic_apart:
            assert isinstance(config.loss, PolicyLossConfig)
            self.critic = CriticFit(config, networks, self.weights, config.loss.loss_critic_type, group)
            self._trained = part(self.weights, None, sum(parameter.numel() for parameter in actor))
            optim, critic = optim.model_copy(update={"critic_lr": None}), []
        self.optimizer, self.scheduler = optim.build(self._trained, actor, critic, config.num_batches)
        self._annealed = config.loss.annealed()
        self._graph = None
        if config.cuda_graph:
            try:
                self._graph = kernels.cuda_graph(self.step, self.minibatch_loss, networks, self.optimizer, device)
            except UnsupportedError as error:
                raise ConfigError([Problem("cuda_graph", f"{error}.", "true")]) from error
        if config.loss.on_policy and config.num_epochs > 1:
            log.warning("num_epochs=%d: this loss has no importance ratio, so its gradient is right only for the "
                        "policy that acted. num_epochs=1 uses each step once.", config.num_epochs)  # fmt: skip

    def _compiles(self) -> bool:
        """Whether to compile the loss, of which a kernel has not written out the gradient."""
        config = self.config
        # The bounds of a falling epsilon are others for each batch, and each would be compiled.
        if getattr(config.loss, "clip_schedule", "constant") != "constant":
            return False
        # A learner's shares of minibatches are of many sizes, and each would be compiled.
        return self.group.size == 1 and use_compiler(config.compile, self._device, config.num_minibatches)

    def update(self, batch: TensorDictBase, progress: float) -> dict[str, float]:
        """Improve the policy on one batch ``[num_envs, steps]``.

        Its rewards are normalised in place; advantages, value targets and what else the loss reads are written into it.

        Args:
            batch: transitions from the policy that acted.
            progress: the share of the run that is over, from 0 to 1.

        Returns:
            Metrics of the update: means over its minibatches. Whether they are finite is not checked here.
        """
        config, loss = self.config, self.minibatch_loss
        lr = float(self.scheduler.get_last_lr()[0])
        for name, coefficient in self._annealed.items():
            self.loss.coefficients[name].fill_(coefficient.at(progress))
        if self.reward_norm is not None:
            batch["next", "reward"] = self.reward_norm(batch["next", "reward"], batch["next", "done"])
        loss.prepare(batch)
        self.advantage(batch)
        explained = explained_variance(*(self.group.gather(batch[key]) for key in ("state_value", "value_target")))
        step, beyond = self._step_fn(), False
        records: list[dict[str, Tensor]] = []
        for epoch in range(config.num_epochs):
            if epoch > 0 and config.recompute_advantage:
                self.advantage(batch)
            last: list[dict[str, Tensor]] = []
            for minibatch in self.minibatches(batch):
                last.append(step(minibatch))
                if config.target_kl_check == "minibatch" and (beyond := self._beyond(loss.kl(stacked(last[-1:])))):
                    break
            records += last
            if self._kl_decides:
                kl = loss.kl(stacked(last))
                if len(records) > 1 or config.collector.lags:  # before the first step the KL is 0 up to rounding
                    self._adapt_lr(kl.item())
                if beyond or self._beyond(kl):
                    break
        means, of_last = stacked(records), stacked(last)
        grad_norm = means.pop("grad_norm").mean()
        metrics = loss.metrics(means) | {"loss/kl": loss.kl(of_last)}
        loss.end_update(of_last)
        self.scheduler.step()
        if self.critic is not None:
            metrics["loss/critic"] = self.critic.fit(batch)["loss_critic"]
        # A loss without a bonus does not compute the entropy: the batch's own actions estimate it.
        metrics.setdefault("loss/entropy", -self.group.gather(batch["action_log_prob"]).mean())
        row: dict[str, float] = {name: value.item() for name, value in metrics.items()}
        row["loss/explained_variance"] = explained
        row["optim/grad_norm"], row["optim/epochs"] = grad_norm.item(), epoch + 1
        row["train/lr"] = lr
        return row

    def minibatches(self, batch: TensorDictBase) -> Iterator[dict[str, Tensor]]:
        """One pass over the batch: what the loss reads, ``minibatch_size`` steps at a time, in random order."""
        keys, size, length = self.minibatch_loss.keys, self.config.minibatch_size, self.networks.sequence_length
        return minibatches(batch, keys, size, length, self.group, self._standardized)

    def step(self, minibatch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of the optimizer; returns the losses and the gradient's norm before clipping, detached."""
        with self.group.own_draws():
            record = self.gradient(minibatch)
        assert self._trained.grad is not None
        record = self.group.combine(self._trained.grad, record, minibatch.get(POSITION), self.config.minibatch_size)
        record["grad_norm"] = clip_grad_norm(self._trained, self.config.max_grad_norm)
        self.optimizer.step()
        return record

    def state_dict(self) -> dict[str, Any]:
        """Coefficients of the loss, optimizers, schedules and running statistics; the networks are not included."""
        return {
            "loss": self.loss.coefficients,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "reward_norm": {} if self.reward_norm is None else self._reward_norm_state(self.reward_norm),
            "value_norm": {} if self.value_norm is None else self.value_norm.state_dict(),
            "critic": {} if self.critic is None else self.critic.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, perhaps over more or fewer batches than it was taken in."""
        for name, coefficient in self.loss.coefficients.items():
            coefficient.copy_(state["loss"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        load_schedule(self.scheduler, state["scheduler"])
        if self.reward_norm is not None:
            saved = state["reward_norm"]
            self.reward_norm.load_state_dict(saved | {"discounted": self.group.rows(saved["discounted"])})
        if self.value_norm is not None:
            self.value_norm.load_state_dict(state["value_norm"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])

    def warm_start(self, state: Mapping[str, Any]) -> None:
        """Take the running statistics of another run's `state_dict`."""
        take_norms(self.reward_norm, self.value_norm, state)

    def begin_episodes(self) -> None:
        """Forget the discounted returns of the current episodes."""
        if self.reward_norm is not None:
            self.reward_norm.discounted.zero_()

    def _reward_norm_state(self, norm: RewardNorm) -> dict[str, Any]:
        return norm.state_dict() | {"discounted": self.group.gather(norm.discounted)}

    def _beyond(self, kl: Tensor) -> bool:
        target = self.config.target_kl
        return target is not None and kl.item() > target

    @property
    def _kl_decides(self) -> bool:
        return self.config.target_kl is not None or isinstance(self.scheduler, KLAdaptive)

    def _adapt_lr(self, kl: float) -> None:
        if isinstance(self.scheduler, KLAdaptive):
            self.scheduler.adapt(kl)
            if self._graph is not None:
                self._graph.invalidate()

    def _step_fn(self) -> Gradient:
        """`step`, as a CUDA graph where there is one, with this update's learning rate and coefficients."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # a resumed optimizer has the setting that it was saved with
                group["capturable"] = self._graph is not None
        if self._graph is None:
            return self.step
        for weights, state in self.optimizer.state.items():  # without a graph, torch keeps some steps on the host
            if isinstance(steps := state.get("step"), Tensor):
                state["step"] = steps.to(weights.device)
        self._graph.invalidate()
        return self._graph
