"""Numbers that end a training: NaN and infinity in batches, metrics and statistics, named when they first appear."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import TensorDictBase
from torchrl.envs import TransformedEnv

from rlexp.envs.normalization import beyond_statistics, observation_norms


class TrainingError(Exception):
    """Training cannot continue; the message says which number went wrong, and when."""


def check_batch(batch: TensorDictBase, frames: int) -> None:
    """Raise a `TrainingError` for the first entry of a batch that is not finite."""
    for key, value in batch.items(include_nested=True, leaves_only=True):
        if value.is_floating_point() and not value.isfinite().all():
            name = key if isinstance(key, str) else ".".join(key)
            raise TrainingError(f"{name} is not finite (NaN or infinity) at {frames:,} frames.")


def check_statistics(env: TransformedEnv, frames: int) -> None:
    """Raise a `TrainingError` for statistics that took in an infinite observation, which clipping hides in a batch."""
    for norm in observation_norms(env):
        if not norm.loc.isfinite().all() or norm.scale.isnan().any():
            raise TrainingError(f"observation is not finite (NaN or infinity) at {frames:,} frames.")
        if beyond_statistics(norm):
            reason = "a number that stands for no reading hides all others from the statistics"
            raise TrainingError(f"observation is beyond 1e30 on average at {frames:,} frames: {reason}.")


def check_metrics(metrics: Mapping[str, float], frames: int) -> None:
    """Raise a `TrainingError` for the first metric that is not finite."""
    for name, value in metrics.items():
        if value - value != 0:
            raise TrainingError(f"{name} is {value} at {frames:,} frames.")
