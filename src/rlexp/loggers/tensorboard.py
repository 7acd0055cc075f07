"""TensorBoard event files as a sink."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from rlexp.loggers.sink import Row, Sink


class TensorBoardSink(Sink):
    """Every metric as a scalar over frames, and the config as text.

    Args:
        folder: holds one event file for each time that the run was started or resumed.
        config: the resolved config.
        frames: where training starts; TensorBoard hides later steps of earlier files.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], frames: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=frames + 1)
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        self._writer.add_text("config", f"```yaml\n{text}```", frames)

    def log(self, row: Row) -> None:
        """Write one row and flush it, so that a killed run keeps it."""
        for name, value in row.items():
            if name != "frames":
                self._writer.add_scalar(name, value, int(row["frames"]))
        self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close the file."""
        self._writer.close()
