"""The papers' formulas in float64 NumPy, term by term: nothing here is shared with what it checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def lambda_return(
    reward: Array, next_value: Array, done: Array, terminated: Array, gamma: float, lmbda: float
) -> Array:
    """The lambda-return as the mixture of n-step returns that defines it (Sutton and Barto 2018, eq. 12.3)."""
    out = np.zeros_like(reward)
    for env, start in np.ndindex(*reward.shape):
        last = start
        while not done[env, last] and last + 1 < reward.shape[1]:
            last += 1
        n_step = []
        for end in range(start, last + 1):
            bootstrap = 0.0 if terminated[env, end] else next_value[env, end]
            rewards = sum(gamma ** (k - start) * reward[env, k] for k in range(start, end + 1))
            n_step.append(rewards + gamma ** (end - start + 1) * bootstrap)
        *early, whole = n_step
        mixture = sum((1 - lmbda) * lmbda**n * g for n, g in enumerate(early))
        out[env, start] = mixture + lmbda ** len(early) * whole
    return out


def v_trace(
    reward: Array, value: Array, next_value: Array, done: Array, terminated: Array, gamma: float, ratio: Array
) -> tuple[Array, Array]:
    """Targets by the sum of Espeholt et al. 2018, eq. 1, and the policy gradient's advantages of its section 4.2."""
    rho = c = np.minimum(1.0, ratio)
    bootstrap = np.where(terminated, 0.0, next_value)
    error = rho * (reward + gamma * bootstrap - value)
    target, advantage = np.zeros_like(reward), np.zeros_like(reward)
    for env, start in np.ndindex(*reward.shape):
        target[env, start], trace = value[env, start], 1.0
        for t in range(start, reward.shape[1]):
            target[env, start] += gamma ** (t - start) * trace * error[env, t]
            trace *= c[env, t]
            if done[env, t]:
                break
    for env, t in np.ndindex(*reward.shape):
        ends = done[env, t] or t + 1 == reward.shape[1]
        following = bootstrap[env, t] if ends else target[env, t + 1]
        advantage[env, t] = rho[env, t] * (reward[env, t] + gamma * following - value[env, t])
    return advantage, target


def perceptron(weights: Sequence[Array], x: Array) -> Array:
    *hidden, last_weight, last_bias = weights
    for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
        x = np.tanh(x @ weight.T + bias)
    return x @ last_weight.T + last_bias


def normal_log_density(x: Array, loc: Array, scale: Array) -> Array:
    out: Array = -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
    return out


def tanh_normal_log_density(action: Array, loc: Array, scale: Array) -> Array:
    """Of actions within (-1, 1): the latent density over the slope of tanh (Haarnoja et al. 2018, eq. 21)."""
    out: Array = (normal_log_density(np.arctanh(action), loc, scale) - np.log(1 - action**2)).sum(-1)
    return out


def gaussian_kl(old_loc: Array, old_scale: Array, loc: Array, scale: Array) -> Array:
    """KL(old, new) of diagonal Gaussians, by its defining integral."""
    z = np.linspace(-9, 9, 401)
    x = old_loc[..., None] + old_scale[..., None] * z
    log_old = normal_log_density(x, old_loc[..., None], old_scale[..., None])
    log_new = normal_log_density(x, loc[..., None], np.broadcast_to(scale, loc.shape)[..., None])
    by_action = (np.exp(log_old) * (log_old - log_new)).sum(-1) * (z[1] - z[0]) * old_scale
    out: Array = by_action.sum(-1)
    return out


def objective(
    weights: list[Array], steps: dict[str, Array], kind: str, settings: dict[str, Any], noise: Array
) -> dict[str, float]:
    """The parts of a loss for a policy of one tanh-squashed Gaussian with a state-independent scale.

    Args:
        weights: the actor's layers, the log of its scale, the critic's layers.
        steps: a minibatch.
        kind: of loss.
        settings: under torchrl's names.
        noise: standard normal, of the entropy's sample; for ``rpo``, ``settings["disturbance"]`` is that of the means.
    """
    layers = (len(weights) - 1) // 2
    loc = perceptron(weights[:layers], steps["observation"])
    if kind == "rpo":  # Rahman and Xue 2022, algorithm 1
        loc = loc + settings["disturbance"]
    scale = np.maximum(np.exp(weights[layers]), 1e-4)
    value = perceptron(weights[layers + 1 :], steps["observation"])[:, 0]
    log_prob = tanh_normal_log_density(steps["action"], loc, scale)
    ratio = np.exp(log_prob - steps["action_log_prob"])
    advantage = steps["advantage"][:, 0]
    if settings.get("normalize_advantage"):
        advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
    match kind:
        case "clip_ppo" | "rpo":  # Schulman et al. 2017, eq. 7
            epsilon = settings["clip_epsilon"]
            gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)
        case "spo":  # Xie et al. 2024
            gain = ratio * advantage - abs(advantage) * (ratio - 1) ** 2 / (2 * settings["epsilon"])
        case "kl_ppo":  # eq. 8
            gain = ratio * advantage - settings["beta"] * gaussian_kl(steps["loc"], steps["scale"], loc, scale)
        case "a2c" | "reinforce":  # Mnih et al. 2016, section 4; Williams 1992, with a baseline
            gain = log_prob * advantage
    latent = loc + scale * noise
    sampled = np.tanh(latent)
    entropy = -(normal_log_density(latent, loc, scale) - np.log(1 - sampled**2)).sum(-1)
    target, old = steps["value_target"][:, 0], steps["state_value"][:, 0]
    distance = _DISTANCES[settings["loss_critic_type"]]
    error = distance(value - target)
    if (bound := settings.get("clip_value")) is not None:
        error = np.maximum(error, distance(np.clip(value, old - bound, old + bound) - target))
    return {
        "loss_objective": -gain.mean(),
        "loss_critic": settings["critic_coeff"] * error.mean(),
        "loss_entropy": -settings["entropy_coeff"] * entropy.mean(),
    }


def _huber(x: Array) -> Array:
    out: Array = np.where(abs(x) < 1, 0.5 * x**2, abs(x) - 0.5)
    return out


_DISTANCES: dict[str, Callable[[Array], Array]] = {"l1": np.abs, "l2": np.square, "smooth_l1": _huber}
