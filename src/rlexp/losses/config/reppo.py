"""Settings of relative entropy pathwise policy optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlexp.config import NonNegative, Positive, Problem
from rlexp.losses.config.base import LossConfig

if TYPE_CHECKING:
    from rlexp.experiment import ExperimentConfig


class REPPOConfig(LossConfig):
    """Relative entropy pathwise policy optimisation (Voelcker et al. 2025): `rlexp.training.learners.REPPOLearner`.

    Attributes:
        max_kl: KL from the policy that acted to the current one; steps whose KL is above it lead back.
        target_entropy: entropy of each action, with the action bounds at -1 and 1, that ``alpha`` is led to; below
            that of the uniform distribution, log 2.
        alpha: weight of the entropy when training starts.
        beta: weight of the KL where it is above ``max_kl``, when training starts.
        multiplier_lr: learning rate of the logarithms of ``alpha`` and ``beta``.
        embedding_coeff: weight of the critic's prediction of its own features of the next step.
    """

    max_kl: Positive
    target_entropy: Annotated[float, Field(lt=log(2))]
    alpha: Positive
    beta: Positive
    multiplier_lr: Positive
    embedding_coeff: NonNegative

    def problems_with(self, experiment: ExperimentConfig) -> Iterator[Problem]:
        """An action-value critic, actions of the newest policy, and a KL that nothing else keeps."""
        if not experiment.policy.has_action_values:
            yield Problem("policy", "must be action_value with loss=reppo, which needs an action-value critic.")
        if experiment.critic_apart:
            yield from self._critic_apart_problems(experiment)
        for key, value, use in (
            ("target_kl", experiment.target_kl, "use loss.max_kl"),
            ("compile", experiment.compile is True or None, "give auto or false"),
            ("cuda_graph", experiment.cuda_graph or None, "give false"),
        ):
            if value is not None:
                yield Problem(key, f"has no meaning with loss=reppo: {use}.", str(value))
        if experiment.optim.follows_kl:
            message = "has no meaning with loss=reppo, which keeps its KL by itself: linear, cosine or constant."
            yield Problem("optim.schedule", message, "kl_adaptive")
        if experiment.collector.lags:
            message = "must be another with loss=reppo, which learns from actions of the newest policy."
            yield Problem("collector", message, "multi_async")
