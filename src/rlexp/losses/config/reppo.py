"""Settings of relative entropy pathwise policy optimisation."""

from __future__ import annotations

from math import log
from typing import Annotated

from pydantic import Field

from rlexp.config import NonNegative, Positive
from rlexp.losses.config.base import LossConfig


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
