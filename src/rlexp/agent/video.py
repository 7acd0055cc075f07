"""Episodes as MP4 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import numpy.typing as npt

from rlexp.envs.making import HEADLESS


class VideoError(Exception):
    """An episode cannot be recorded here; the message names the remedy."""


class EpisodeRecorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes the first episode of an environment to an MP4, frame by frame; later ones pass unseen.

    Args:
        env: made with ``render_mode="rgb_array"``.
        path: the file; appears when the episode has ended, and replaces one that is there.

    Raises:
        VideoError: rendering or the encoder is missing.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: Path) -> None:
        super().__init__(env)
        try:
            from imageio_ffmpeg import write_frames
        except ImportError as error:
            raise VideoError("writing MP4 needs an encoder: pip install 'rlexp[video]'.") from error
        if env.render_mode != "rgb_array":
            raise VideoError(f"{env} has no render mode rgb_array, so there are no pictures to write.")
        self._write_frames = write_frames
        self._path = path
        self._aside = path.with_name(f".{path.stem}.tmp.mp4")
        self._writer: Any = None
        self._done = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the first one starts the recording."""
        observation, info = self.env.reset(seed=seed, options=options)
        if not self._done:
            self._record()
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step; the end of the first episode ends the recording."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._done:
            self._record()
            if terminated or truncated:
                self._finish()
        return observation, reward, terminated, truncated, info

    def _record(self) -> None:
        frame = self._frame()
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            height, width, _ = frame.shape
            fps = self.env.metadata.get("render_fps", 30)
            # macro_block_size 2, not 16: players want even sizes, and more would stretch the picture.
            self._writer = self._write_frames(str(self._aside), (width, height), fps=fps, macro_block_size=2)
            self._writer.send(None)
        self._writer.send(frame)

    def _frame(self) -> npt.NDArray[np.uint8]:
        try:
            return np.ascontiguousarray(self.env.render(), dtype=np.uint8)
        except Exception as error:
            raise VideoError(f"this environment cannot be rendered here: {error}. {HEADLESS}") from error

    def _finish(self) -> None:
        self._writer.close()
        self._aside.replace(self._path)
        self._done = True

    def close(self) -> None:
        """Close the environment; of an episode that did not end nothing is left."""
        if self._writer is not None and not self._done:
            self._writer.close()
            self._aside.unlink(missing_ok=True)
        super().close()
