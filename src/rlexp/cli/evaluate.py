"""``rlexp-eval``: evaluate the agent of a checkpoint."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rlexp.cli.common import Exit, import_from_here, read_settings, run_command, split_secrets
from rlexp.config import Config, Count, Integer
from rlexp.experiment import read_config
from rlexp.machine import pick_device, set_threads
from rlexp.runs import checkpoint
from rlexp.text import printable

_HELP = """\
rlexp-eval: evaluate a trained agent on whole episodes.

usage: rlexp-eval checkpoint=RUN_DIR|CHECKPOINT [key=value ...]

  checkpoint      RUN_DIR                             the latest checkpoint of a run
                  RUN_DIR/checkpoints/best            the one with the highest evaluation
                  RUN_DIR/checkpoints/000000051200    the one after 51,200 frames
  episodes        number of episodes; default: as in the run's own evaluations
  seed            the episodes' seeds derive from it; default: the run's own, which repeats its evaluation
  deterministic   true (default), or false to sample actions as in training, from the same seed
  video           true to record the first episode in RUN_DIR/videos as MP4; default: false
  device          auto, cpu, cuda, cuda:1; default: the run's own
  trust           packages that the checkpoint may import besides what rlexp builds, e.g. trust=[my_lab]; with it,
                  modules may lie where the command runs (docs/security.md)
  env.kwargs.KEY  the value of a secret, which was not saved

Where the output is not a terminal, its last line is one JSON object.
"""


class EvalConfig(Config):
    """Settings of ``rlexp-eval``; None is the run's own setting."""

    checkpoint: Annotated[str, Field(min_length=1)]
    episodes: Count | None = None
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] | None = None
    deterministic: bool = True
    video: bool = False
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] | None = None
    trust: list[str] = Field(default=[])


def main() -> None:
    """Console entry."""
    run_command("rlexp-eval", evaluate, _HELP)


def evaluate(arguments: list[str]) -> int:
    """Evaluate a checkpoint and print the result, in a pipe or a file last as a line of JSON.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong, or the checkpoint's config cannot be used here.
        RlexpError, OSError: the checkpoint cannot be read, the evaluation has no result, or no video can be made.
    """
    arguments, secrets = split_secrets(arguments)
    settings = read_settings(EvalConfig, arguments, paths=("checkpoint",))
    if settings.trust:
        import_from_here()

    saved = checkpoint.load(Path(settings.checkpoint))
    experiment = read_config(saved.config, settings.trust, secrets)
    saved.check_size()

    # Only now: they import torch, and what is refused is refused at once.
    import torch

    from rlexp.agent import Agent, evaluation
    from rlexp.agent.video import EpisodeRecorder

    device = pick_device(settings.device or experiment.device)
    seed = experiment.seed if settings.seed is None else settings.seed
    seeds = evaluation.evaluation_seeds(seed, settings.episodes or experiment.evaluation.episodes)
    video, recorder = None, None
    agent = Agent(saved, device, settings.trust, secrets=secrets, render=settings.video)
    weights = sum(p.numel() for p in agent.networks.parameters())
    set_threads(experiment.threads, weights, experiment.minibatch_size, busy=0)
    if settings.video:
        sampled = "" if settings.deterministic else "_sampled"
        video = agent.folder / "videos" / f"{agent.frames:012d}_seed{seed}{sampled}.mp4"
        recorder = agent.env.base_env.wrap(partial(EpisodeRecorder, path=video))
    torch.manual_seed(seed)
    try:
        result = evaluation.evaluate(
            agent.env,
            agent.networks.actor,
            seeds,
            deterministic=settings.deterministic,
            kernels=experiment.use_kernels,
        )
    finally:
        agent.close()
    if recorder is not None:
        recorder.check()

    statistics = result.statistics()
    kind = "deterministic" if settings.deterministic else "sampled"
    averaged = ", weights averaged over batches" if agent.averaged else ""
    print(printable(f"{agent.path} after {agent.frames:,} frames of {experiment.env.name}"))
    episodes = "1 episode" if len(seeds) == 1 else f"{len(seeds):,} episodes"
    print(f"{kind} policy{averaged}, {episodes}, seed={seed}")
    for quantity in ("return", "length"):
        known = {name: statistics.get(f"{name}_{quantity}") for name in ("mean", "std", "median", "min", "max")}
        shown = ", ".join(f"{name} {value:,.1f}" for name, value in known.items() if value is not None)
        print(f"{quantity}: {shown}")
    if (interval := statistics["ci95_return"]) is not None:
        print("95% interval of the mean return: {:,.1f} to {:,.1f}".format(*interval))
    if video is not None:
        print(printable(f"first episode: {video}"))
    used = {
        "checkpoint": str(agent.path),
        "frames": agent.frames,
        "env": experiment.env.name,
        "episodes": len(seeds),
        "deterministic": settings.deterministic,
        "weight_average": experiment.evaluation.average if agent.averaged else None,
        "device": str(device),
        "seed": seed,
        "video": None if video is None else str(video),
    }
    if not sys.stdout.isatty():
        print(json.dumps(used | statistics | {"returns": result.returns, "lengths": result.lengths, "seeds": seeds}))
    return Exit.DONE
