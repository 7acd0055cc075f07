"""``rlexp-export``: export the policy of a checkpoint to ONNX or ``torch.export``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlexp.cli.common import Exit, import_from_here, read_settings, run_command, split_secrets
from rlexp.config import Config, Problem
from rlexp.experiment import read_config
from rlexp.runs import checkpoint

_HELP = """\
rlexp-export: write a trained policy as one file that needs neither rlexp nor torchrl.

usage: rlexp-export checkpoint=RUN_DIR|CHECKPOINT [format=onnx] [out=PATH]

  checkpoint   a run's folder (its latest checkpoint), RUN_DIR/checkpoints/best, or one checkpoint's folder
  format       onnx (default), or torch: a program for torch.export.load
  out          the file; default: policy.onnx or policy.pt2 in the checkpoint's run
  trust        packages that the checkpoint may import besides what rlexp builds, e.g. trust=[my_lab]; with it,
               modules may lie where the command runs (docs/security.md)
  env.kwargs.KEY  the value of a secret, which was not saved

The graph maps raw observations [batch, ...] to the environment's actions, with normalisation and action bounds inside;
that of a recurrent policy also takes recurrent_state [batch, state_size], zeros where an episode begins, and returns
next_recurrent_state.
Before the file appears, it is compared with the agent on 1,000 observations of its environment.
"""

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class ExportConfig(Config):
    """Settings of ``rlexp-export``; ``out=None`` is a path in the run's folder."""

    checkpoint: Annotated[str, Field(min_length=1)]
    format: Literal["onnx", "torch"] = "onnx"
    out: Annotated[str, Field(min_length=1)] | None = None
    trust: list[str] = Field(default=[])

    def problems(self) -> Iterator[Problem]:
        """The file's suffix fits its format."""
        suffix = _SUFFIXES[self.format]
        if self.out is not None and Path(self.out).suffix != suffix:
            yield Problem("out", f"must end in {suffix} with format={self.format}.", self.out)


def main() -> None:
    """Console entry."""
    run_command("rlexp-export", export, _HELP)


def export(arguments: list[str]) -> int:
    """Export a checkpoint's policy and print the file's path.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong, or the checkpoint's config cannot be used here.
        RlexpError, OSError: the checkpoint cannot be read, or its policy not be exported.
    """
    arguments, secrets = split_secrets(arguments)
    settings = read_settings(ExportConfig, arguments, paths=("checkpoint", "out"))
    if settings.trust:
        import_from_here()
    if settings.format == "onnx" and not all(map(find_spec, _NEEDED)):
        print("rlexp-export: format=onnx needs more packages: pip install 'rlexp[export]'.", file=sys.stderr)
        return Exit.FAILED

    saved = checkpoint.load(Path(settings.checkpoint))
    experiment = read_config(saved.config, settings.trust, secrets)
    saved.check_size()

    # Only now: they import torch, and what is refused is refused at once.
    from rlexp.agent import Agent
    from rlexp.agent.export import CHECKED, export_policy

    with closing(Agent(saved, trust=settings.trust, config=experiment)) as agent:
        default = agent.folder / f"policy{_SUFFIXES[settings.format]}"
        path = export_policy(agent, settings.format, Path(settings.out) if settings.out else default)
    print(f"{agent.path} after {agent.frames:,} frames: the same actions on {CHECKED:,} observations")
    print(path)
    return Exit.DONE
