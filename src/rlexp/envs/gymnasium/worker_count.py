"""How many processes step the simulators soonest. Imports nothing."""

from __future__ import annotations

_MESSAGES = 5e-5  # seconds that a step's messages to a worker and back take
_START = 1.0  # seconds until a worker process is there


def best_workers(seconds: float, num_envs: int, cores: int, steps: int) -> int:
    """How many processes, this one included, make so many steps of all simulators soonest.

    Args:
        seconds: that a step of one simulator takes.
        num_envs: simulators.
        cores: processes at most.
        steps: of each simulator.
    """

    def cost(workers: int) -> float:
        return -(-num_envs // workers) * seconds + (workers - 1) * _MESSAGES

    best = min(range(1, min(cores, num_envs) + 1), key=cost)
    return best if steps * (cost(1) - cost(best)) > _START else 1
