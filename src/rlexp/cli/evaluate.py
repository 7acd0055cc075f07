"""``rlexp-eval``: evaluate a checkpoint, from the checkpoint alone."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from rlexp.cli.common import Exit, run_command
from rlexp.config import ConfigError, Count, Integer, Problem, Spec, read

_HELP = """\
rlexp-eval: evaluate a trained agent.

usage: rlexp-eval checkpoint=RUN_DIR|CHECKPOINT [episodes=10] [seed=0]

  checkpoint   a run's folder (its latest checkpoint), or one checkpoint's folder
  episodes     whole episodes, deterministic; default: as many as the run's own evaluations
  seed         what the episodes' seeds derive from; default: the run's own, which gives its evaluation again
  trust        packages of your own that the checkpoint may import, e.g. trust=[my_lab]

The last line printed is one JSON object.
"""


class EvalSettings(Spec):
    """What ``rlexp-eval`` takes; None stands for the run's own setting."""

    checkpoint: Annotated[str, Field(min_length=1)]
    episodes: Count | None = None
    seed: Annotated[Integer, Field(ge=0)] | None = None
    trust: list[str] = Field(default=[])


def main() -> None:
    """Console entry."""
    run_command("rlexp-eval", evaluate)


def evaluate(arguments: list[str]) -> int:
    """Evaluate a checkpoint and print the result, last line as JSON.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line is wrong.
    """
    if {"--help", "-h"} & set(arguments):
        print(_HELP)
        return Exit.DONE
    settings = _settings(arguments)

    from rlexp import evaluation
    from rlexp.agent import Agent
    from rlexp.checkpoint import CheckpointError
    from rlexp.trainer import set_threads

    try:
        agent = Agent(Path(settings.checkpoint), trust=settings.trust)
    except CheckpointError as error:
        print(f"rlexp-eval: {error}", file=sys.stderr)
        return Exit.FAILED
    set_threads(agent.experiment, sum(p.numel() for p in agent.networks.parameters()))
    seed = agent.experiment.seed if settings.seed is None else settings.seed
    episodes = settings.episodes or agent.experiment.evaluation.episodes
    seeds = evaluation.evaluation_seeds(seed, episodes)
    result = evaluation.evaluate(agent.env, agent.networks.actor, seeds)
    spread = statistics.stdev(result.returns) if len(result.returns) > 1 else 0.0
    print(f"{agent.path} after {agent.frames:,} frames")
    print(f"mean return {result.mean_return:.1f} +- {spread:.1f} over {episodes} episodes")
    print(
        json.dumps(
            {
                "checkpoint": str(agent.path),
                "frames": agent.frames,
                "mean_return": result.mean_return,
                "std_return": spread,
                "returns": result.returns,
                "lengths": result.lengths,
                "seeds": result.seeds,
            }
        )
    )
    return Exit.DONE


def _settings(arguments: list[str]) -> EvalSettings:
    try:
        values = OmegaConf.to_container(OmegaConf.from_cli(arguments), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Problem(" ".join(arguments), f"cannot be read as key=value: {error}.")]) from error
    assert isinstance(values, dict)
    return read(EvalSettings, {str(key): value for key, value in values.items()})
