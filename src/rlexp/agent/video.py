"""Recording of episodes as MP4."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import numpy.typing as npt
from torchrl.envs import TransformedEnv

from rlexp.config import ConfigError, Problem
from rlexp.envs import BatchedConfig, EnvConfig
from rlexp.envs.errors import SimulatorError
from rlexp.envs.gymnasium.making import HEADLESS, default_to_egl
from rlexp.errors import RlexpError
from rlexp.seeding import unmoved_generators


class VideoError(RlexpError):
    """An episode cannot be recorded here; the message names the remedy."""


class EpisodeRecorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records the first episode of an environment as an MP4, frame by frame.

    Args:
        env: made with ``render_mode="rgb_array"``.
        path: the file; appears when the episode has ended, and replaces an existing one.

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
            raise VideoError(f"{env} has no render mode rgb_array, which a video needs.")
        self._write_frames = write_frames
        self._path = path
        self._aside: TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._stepped = self._done = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the first one starts the recording, and one after a step ends it: a transform's time limit was up."""
        if self._stepped and not self._done:
            self._finish()
        observation, info = self.env.reset(seed=seed, options=options)
        if not self._done:
            self._record()
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step; the end of the first episode ends the recording."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._done:
            self._record()
            self._stepped = True
            if terminated or truncated:
                self._finish()
        return observation, reward, terminated, truncated, info

    def _record(self) -> None:
        frame = self._frame()
        if self._writer is None:
            if self._path.parent.is_symlink():
                raise VideoError(f"{self._path.parent} is a link, and what is written would go elsewhere: remove it.")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # In a new folder: the encoder would follow a link of the file's name.
            self._aside = TemporaryDirectory(prefix=f".{self._path.stem}.", dir=self._path.parent)
            height, width, _ = frame.shape
            fps = self.env.metadata.get("render_fps", 30)
            # macro_block_size 2, not 16: players need even sizes, and 16 would stretch the image.
            aside = str(Path(self._aside.name, self._path.name))
            self._writer = self._write_frames(aside, (width, height), fps=fps, macro_block_size=2)
            self._writer.send(None)
        self._writer.send(frame)

    def _frame(self) -> npt.NDArray[np.uint8]:
        try:
            with _tracking(self.env):
                return np.ascontiguousarray(self.env.render(), dtype=np.uint8)
        except Exception as error:
            raise VideoError(f"this environment cannot be rendered here: {error}. {HEADLESS}") from error

    def _finish(self) -> None:
        assert self._aside is not None
        self._writer.close()
        Path(self._aside.name, self._path.name).replace(self._path)
        self._aside.cleanup()
        self._done = True

    def check(self) -> None:
        """Refuse to go on without the file.

        Raises:
            VideoError: it has not been written: the environment did not reset its simulator after the episode.
        """
        if not self._done:
            raise VideoError(
                f"{self._path} was not written: the environment did not reset its simulator after the episode."
            )

    def close(self) -> None:
        """Close the environment; the video of an unfinished episode is removed."""
        if self._writer is not None and not self._done:
            self._writer.close()
        if self._aside is not None:
            self._aside.cleanup()
        super().close()


@contextmanager
def _tracking(env: gymnasium.Env[Any, Any]) -> Iterator[None]:
    """Draw with the camera that follows a MuJoCo robot; Gymnasium 1.4 has one that stays where the episode began.

    Restored afterwards, since images may be observed as well. A camera of the user's choice is left alone.
    """
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    chosen = {"camera_id", "camera_name", "default_camera_config"} & (env.spec.kwargs.keys() if env.spec else set())
    if chosen or getattr(renderer, "camera_id", None) != -1:  # None: no MuJoCo, or another renderer
        yield
        return
    import mujoco

    # -1 where the model has no such camera.
    renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    try:
        yield
    finally:
        renderer.camera_id = -1


def rendering(spec: EnvConfig) -> EnvConfig:
    """The same environment with simulators that render; without a display MuJoCo renders with EGL.

    Raises:
        VideoError: it cannot render.
    """
    if not isinstance(spec, BatchedConfig):
        raise VideoError(f"{type(spec).__name__} cannot render; env=gym, env=dm_control and env=atari can.")
    default_to_egl()
    return spec.rendering()


@contextmanager
def recorded(spec: EnvConfig, path: Path) -> Iterator[tuple[TransformedEnv, EpisodeRecorder]]:
    """One simulator whose first episode is recorded as an MP4; the global random generators are restored afterwards.

    Raises:
        VideoError: the environment cannot render, or the encoder is missing.
    """
    with unmoved_generators(), closing(rendering(spec).build(1)) as env:
        yield env, env.base_env.wrap(partial(EpisodeRecorder, path=path))


def check_recording(spec: EnvConfig, setting: str) -> None:
    """Render and encode one frame, to find out early whether videos can be recorded.

    Args:
        spec: the environment.
        setting: the setting that requests videos.

    Raises:
        ConfigError: no video can be recorded here; the message names the remedy.
    """
    try:
        with TemporaryDirectory() as folder, recorded(spec, Path(folder, "first.mp4")) as (env, _):
            env.base_env.reset()
    except (VideoError, SimulatorError, ConfigError) as error:
        reason = error.problems[0].message if isinstance(error, ConfigError) else error
        raise ConfigError([Problem(setting, f"no video of this environment can be recorded here: {reason}")]) from error
