"""``rlexp-train``: compose, check, train."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from rlexp.cli.common import Exit, run_command
from rlexp.config import VERSION_BASE, Sources, conf_dir, expand_sweeps, groups, load, search_path, tolerant
from rlexp.experiment import Experiment, check_config

_HELP = """\
rlexp-train: train an agent.

usage: rlexp-train [group=option ...] [key=value ...] [--multirun]

groups and their options:
{groups}

often set (see the files in {conf} for all, with a comment each):
  env.id=Pusher-v5            with env=gym: any Gymnasium environment with continuous actions
  env.num_envs=16             simulators stepped together
  total_frames=1_000_000      budget in simulator frames
  collector.frames_per_batch=2048
  minibatch_size=512          num_epochs=10
  optim.lr=3e-4               loss.clip_epsilon=0.1       loss.entropy_coeff=0.01
  policy.num_cells=[256,256]  seed=3                      logger.mode=offline

examples:
  rlexp-train
  rlexp-train env=hopper seed=3 total_frames=1_000_000
  rlexp-train experiment=tutorial
  rlexp-train --multirun seed=0,1,2,3,4

flags:
  --multirun, -m   one run for each combination of comma-separated values
  --config-dir D   find your own options in D, e.g. D/env/mine.yaml for env=mine
  --config-path RUN_DIR --config-name config
                   run the experiment of RUN_DIR again, from its config.yaml
  --shell-completion install=bash|zsh|fish
                   print the script that completes groups, options and settings

rlexp-config shows every option and setting, and checks a command line without running it.
"""


def main() -> None:
    """Console entry."""
    run_command("rlexp-train", train)


def train(arguments: list[str]) -> int:
    """Check the command line, then run the one experiment that it describes, or hand its many to Hydra's launcher.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line or the config is wrong.
    """
    flags = get_args_parser().parse_intermixed_args(arguments)
    if flags.help:
        print(_HELP.format(groups=_groups(Sources(flags.config_dir)), conf=conf_dir()))
        return Exit.DONE
    if flags.multirun or flags.cfg or flags.info or flags.shell_completion or flags.hydra_help:
        return _hand_to_hydra(flags)
    composed = load(flags.overrides, Sources(flags.config_dir, flags.config_path, flags.config_name))
    return run(check_config(composed), composed.run_dir)


def run(experiment: Experiment, run_dir: str) -> int:
    """Train and say where the results are.

    Returns:
        The exit code.
    """
    from rlexp.session import console_logging
    from rlexp.trainer import Stopped, Trainer

    with console_logging():
        trainer = Trainer.from_config(experiment, run_dir)
        try:
            summary = trainer.fit()
        except Stopped as stopped:
            print(f"{stopped}; the run is saved in {trainer.run.path}")
            return 128 + stopped.signal
        except Exception as error:
            print(f"rlexp-train: {type(error).__name__}: {error}\nTraceback in {trainer.run.log}", file=sys.stderr)
            return Exit.FAILED
    print(f"{summary['frames']:,} frames in {summary['seconds']:.1f} s; results in {trainer.run.path}")
    episodes = experiment.evaluation.episodes
    print(f"final evaluation: mean return {summary['final']['eval/return']:.1f} over {episodes} episodes")
    return Exit.DONE


def _hand_to_hydra(flags: argparse.Namespace) -> int:
    """Let Hydra show what it is asked to, or launch a multirun whose every job was checked before the first starts."""
    import hydra

    sources = Sources(flags.config_dir, flags.config_path, flags.config_name)
    if flags.multirun:
        for overrides in expand_sweeps(flags.overrides):
            check_config(load(overrides, sources))
    if not flags.shell_completion:
        options = [argument for argument in sys.argv if argument not in flags.overrides]
        sys.argv = [*options, *tolerant(flags.overrides, sources)]
        if folders := search_path(sources):
            sys.argv.append(f"hydra.searchpath=[{','.join(folders)}]")
    hydra.main(config_path=str(conf_dir()), config_name="train", version_base=VERSION_BASE)(_job)()
    return Exit.DONE


def _job(config: DictConfig) -> float:
    """One job of a multirun; its result is what a sweeper maximises."""
    from hydra.core.hydra_config import HydraConfig

    from rlexp.session import console_logging
    from rlexp.trainer import Stopped, Trainer

    values: Any = OmegaConf.to_container(config, resolve=True)
    with console_logging():
        try:
            summary = Trainer.from_config(values, HydraConfig.get().runtime.output_dir).fit()
        except Stopped as stopped:
            sys.exit(128 + stopped.signal)
    return float(summary["final"]["eval/return"])


def _groups(sources: Sources) -> str:
    return "\n".join(f"  {group:16} {', '.join(options)}" for group, options in groups(sources).items())
