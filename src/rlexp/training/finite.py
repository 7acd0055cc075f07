"""Numbers that end a run: NaN and infinity in batches, metrics and statistics, named when they first appear."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import TensorDictBase
from torchrl.envs import TransformedEnv

from rlexp.envs.normalization import beyond_statistics, observation_norms

_OWN = ("frames", "train/", "eval/", "time/")


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
            reason = "a placeholder for a missing reading would dominate the statistics"
            raise TrainingError(f"observation is beyond 1e30 on average at {frames:,} frames: {reason}.")


def check_additions(source: str, before: Mapping[str, float], metrics: dict[str, float], frames: int) -> None:
    """Take what a callback has added to a row's metrics as numbers.

    Args:
        source: names the callback.
        before: the metrics before its call.
        metrics: those after it; what it has added as another type of number becomes a float.
        frames: simulator frames of the row.

    Raises:
        TrainingError: an entry is no finite number, or one of rlexp's own that was changed or taken away.
    """
    for key in metrics.keys() | before.keys():
        value = metrics.get(key)
        if key in before:
            if value is not before[key]:
                raise TrainingError(f"{source} changes the metric {key}, which is rlexp's own: add another name.")
        elif key.startswith(_OWN):
            raise TrainingError(f"{source} adds the metric {key}, a name of rlexp's own: give it another prefix.")
        else:
            try:
                number = float(value)  # type: ignore[arg-type] # whatever it is
            except (TypeError, ValueError, RuntimeError):
                raise TrainingError(f"{source} adds the metric {key}, which is no number: {value!r:.100}") from None
            if number - number != 0:
                raise TrainingError(f"{source} adds the metric {key}, which is {number} at {frames:,} frames.")
            if not isinstance(value, int | float):
                metrics[key] = number


def check_metrics(metrics: Mapping[str, float], frames: int) -> None:
    """Raise a `TrainingError` for the first metric that is not finite."""
    for name, value in metrics.items():
        if value - value != 0:
            raise TrainingError(f"{name} is {value} at {frames:,} frames.")
