"""CartPole in PyTorch: thousands of carts on any device, and an example of a simulator written in PyTorch."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torchrl.data import Categorical, Unbounded

from rlexp.envs.tensors import TensorEnv

GRAVITY, FORCE, SECONDS = 9.8, 10.0, 0.02
POLE, MASS, HALF_LENGTH = 0.1, 1.1, 0.5  # masses of the pole alone and with the cart
MOMENT = POLE * HALF_LENGTH
FARTHEST, STEEPEST = 2.4, 12 * pi / 180


class CartPole(TensorEnv):
    """Gymnasium's CartPole-v1 without its time limit: balance a pole on a cart (Barto, Sutton and Anderson 1983).

    Args:
        num_envs: number of carts.
        device: where they are simulated.

    Shapes:
        observation ``[num_envs, 4]``: position, velocity, angle, angular velocity, in m, rad and s; action
        ``[num_envs]``: 0 pushes to the left, 1 to the right. Every step is rewarded by 1.
    """

    def __init__(self, num_envs: int, device: torch.device | str = "cpu") -> None:
        super().__init__(num_envs, Unbounded(4), Categorical(2), random_numbers=4, device=device)

    def initial(self, uniform: Tensor) -> Tensor:
        """Each number of a state between -0.05 and 0.05."""
        return 0.1 * uniform - 0.05

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step by Euler's method; an episode ends where the cart or the pole is too far off."""
        _, velocity, angle, angular_velocity = state.unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        pushed = (FORCE * (2 * action - 1) + MOMENT * angular_velocity.square() * sin) / MASS
        turned = (GRAVITY * sin - cos * pushed) / (HALF_LENGTH * (4 / 3 - POLE / MASS * cos.square()))
        accelerated = pushed - MOMENT / MASS * turned * cos
        state = state + SECONDS * torch.stack([velocity, accelerated, angular_velocity, turned], -1)
        position, angle = state[:, 0], state[:, 2]
        terminated = (position.abs() > FARTHEST) | (angle.abs() > STEEPEST)
        return state, torch.ones_like(position), terminated
