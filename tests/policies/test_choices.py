"""Distributions over one choice or several, masked or not, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torchrl.data import Categorical as CategoricalSpec
from torchrl.data import MultiCategorical, TensorSpec

from rlexp.kernels.distributions import CategoricalFamily
from rlexp.policies.heads import NEVER, FactorizedCategorical, Head, MaskedLogits, head

SPECS: dict[str, tuple[TensorSpec, list[int]]] = {
    "one": (CategoricalSpec(4), [4]),
    "several": (MultiCategorical([2, 4, 3], shape=(3,)), [2, 4, 3]),
    "a vector of one": (MultiCategorical([3], shape=(1,)), [3]),
}
STEPS = 50


def log_probabilities(logits: npt.NDArray[Any], allowed: npt.NDArray[Any], sizes: list[int]) -> list[npt.NDArray[Any]]:
    """Of each choice ``[steps, n]``, -inf where it is not allowed."""
    parts = zip(*(np.split(rows, np.cumsum(sizes)[:-1], -1) for rows in (logits, allowed)), strict=True)
    weights = [np.exp(part) * flags for part, flags in parts]
    with np.errstate(divide="ignore"):
        return [np.log(weight / weight.sum(-1, keepdims=True)) for weight in weights]


def masks(sizes: list[int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    parts = []
    for n in sizes:
        part = rng.random((STEPS, n)) < 0.5
        part[np.arange(STEPS), rng.integers(n, size=STEPS)] = True
        parts.append(part)
    return np.concatenate(parts, -1)


def entropy_of(log_p: npt.NDArray[Any]) -> npt.NDArray[Any]:
    p = np.exp(log_p)
    return np.asarray(-np.multiply(p, log_p, where=p > 0, out=np.zeros_like(p)).sum(-1))


def kl_of(log_p: npt.NDArray[Any], log_q: npt.NDArray[Any]) -> npt.NDArray[Any]:
    p = np.exp(log_p)
    return np.asarray(np.multiply(p, np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p))).sum(-1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SPECS)
def test_probabilities_entropies_and_divergences_are_those_of_numpy(kind: str, masked: bool) -> None:
    spec, sizes = SPECS[kind]
    rng = np.random.default_rng(0)
    made: Head = head("categorical", spec, None)
    family_of: Any = made.distribution_class
    raw = [torch.tensor(3 * rng.normal(size=(STEPS, made.outputs)), dtype=torch.float32) for _ in range(2)]
    allowed = masks(sizes, rng) if masked else np.ones((STEPS, sum(sizes)), np.bool_)
    raw[0].requires_grad_()
    logits = [made.module(rows) for rows in raw]
    if masked:
        logits = [MaskedLogits(spec)(rows, torch.from_numpy(allowed)) for rows in logits]
    ours, other = (family_of(logits=rows) for rows in logits)

    expected, others = (log_probabilities(rows.detach().double().numpy(), allowed, sizes) for rows in raw)
    torch.manual_seed(0)
    action = ours.sample()
    by_choice = action.numpy().reshape(STEPS, len(sizes))
    log_prob = sum(log_p[np.arange(STEPS), by_choice[:, i]] for i, log_p in enumerate(expected))
    kl = sum(kl_of(p, q) for p, q in zip(expected, others, strict=True))
    assert action.shape == (STEPS, *spec.shape)
    assert np.isfinite(log_prob).all()  # every action is allowed
    family = CategoricalFamily(several=bool(spec.shape))
    for found, wanted in (
        (ours.log_prob(action), log_prob),
        (family.log_prob(action, logits[0]), log_prob),
        (ours.entropy(), sum(map(entropy_of, expected))),
        (family.entropy(logits[0]), np.mean(sum(map(entropy_of, expected)))),
        (kl_divergence(ours, other), kl),
        (family.kl((logits[0],), (logits[1],)), kl),
    ):
        np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4, atol=1e-5)
    likeliest = np.stack([log_p.argmax(-1) for log_p in expected], -1).reshape(action.shape)
    best = ours.deterministic_sample if isinstance(ours, FactorizedCategorical) else ours.mode
    np.testing.assert_array_equal(best, likeliest)
    np.testing.assert_array_equal(family.act((logits[0].detach().numpy(),), None), likeliest)

    slopes = [
        torch.autograd.grad(value, raw[0], retain_graph=True)[0]
        for value in (ours.log_prob(action).sum(), ours.entropy().sum(), kl_divergence(other, ours).sum())
    ]
    taken = [np.eye(n)[by_choice[:, i]] for i, n in enumerate(sizes)]
    by_logit = np.concatenate(taken, -1) - np.exp(np.concatenate(expected, -1))
    np.testing.assert_allclose(slopes[0], by_logit, rtol=1e-4, atol=1e-5)
    for slope in slopes:
        assert slope.isfinite().all()
        assert (slope[torch.from_numpy(~allowed)] == 0).all()


def test_what_is_not_allowed_is_never_sampled() -> None:
    """By torch's sampling and by the kernel's, however likely the network finds it."""
    sizes = [2, 4, 3]
    spec, rng = MultiCategorical(sizes, shape=(3,)), np.random.default_rng(1)
    allowed = torch.from_numpy(masks(sizes, rng))
    wanted = torch.where(allowed, 0.0, 50.0)
    logits = MaskedLogits(spec)(head("categorical", spec, None).module(wanted), allowed)
    flags = MaskedLogits(spec)(torch.zeros_like(logits), allowed) != NEVER
    family = CategoricalFamily(several=True)
    for _ in range(100):
        drawn = FactorizedCategorical(logits).sample()
        acted = torch.from_numpy(family.act((logits.numpy(),), family.noise(tuple(logits.shape)).numpy()))
        for action in (drawn, acted):
            assert flags.gather(-1, action[..., None]).all()


def test_without_masks_one_choice_is_torchs_own_categorical() -> None:
    made = head("categorical", CategoricalSpec(4), None)
    assert made.distribution_class is Categorical
