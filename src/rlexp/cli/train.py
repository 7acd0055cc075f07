"""``rlexp-train``: compose, check, train."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from contextlib import AbstractContextManager, closing, nullcontext

from hydra._internal.utils import get_args_parser

from rlexp.cli.common import Exit, import_from_here, refuse_learners, report_error, run_command
from rlexp.cli.sweep import is_sweep_setting, sweep
from rlexp.config import (
    VERSION_BASE,
    Composed,
    ConfigError,
    Problem,
    Sources,
    conf_dir,
    groups,
    load,
    search_path,
    tolerant,
)
from rlexp.distributed import ALONE, Group, launched, train_command
from rlexp.experiment import check_config, trust_argument, trusted
from rlexp.text import printable

_HELP = """\
rlexp-train: train an agent.

usage: rlexp-train [group=option ...] [key=value ...] [--multirun]

groups and their options:
{groups}

common settings (all of them, with comments, are in {conf}):
  env.id=Pusher-v5            with env=gym: any Gymnasium environment
  env.num_envs=16             parallel simulators
  total_frames=1_000_000      budget in simulator frames
  collector.frames_per_batch=2048
  minibatch_size=512          num_epochs=10
  optim.lr=3e-4               loss.clip_epsilon=0.1       loss.entropy_coeff=0.01
  policy.num_cells=[256,256]  seed=3                      logger.mode=offline

examples:
  rlexp-train
  rlexp-train env=hopper seed=3 total_frames=1_000_000
  rlexp-train experiment=tutorial
  rlexp-train --multirun env=hopper,half_cheetah seed=0,1,2,3,4 launcher=joblib
  rlexp-train --multirun sweep.resume=SWEEP_DIR         keep completed jobs, resume interrupted ones, run the others
  rlexp-train resume=RUN_DIR                            resume, bit for bit, in the same folder
  rlexp-train resume=RUN_DIR total_frames=500_000       extend; schedules cover the new total
  rlexp-train resume=wandb:ENTITY/PROJECT/RUN           resume from the newest checkpoint that a run has uploaded
  rlexp-train hydra.run.dir=my_run resume=auto          start, resume, or return at once if it is complete
  rlexp-train env=hopper warm_start=RUN_DIR             a new run from another run's weights and statistics

signals (exit codes: SIGINT 130, SIGTERM 143, SIGUSR1 0 for a requeue): the batch is finished and a checkpoint saved;
a second signal ends the process at once.

flags:
  --multirun, -m   one run for each combination of comma-separated values, by the launcher chosen with launcher=;
                   sweep.fail_fast=true stops all at the first failure
  --config-dir D   also find options in D, e.g. D/env/mine.yaml for env=mine
  --config-path RUN_DIR --config-name config
                   repeat the experiment of RUN_DIR from its config.yaml
  --shell-completion install=bash|zsh|fish
                   print the script that completes groups, options and settings

rlexp-config lists every option and setting, and checks a command line without running it.
"""


def main() -> None:
    """Console entry."""
    run_command("rlexp-train", train)


def train(arguments: list[str]) -> int:
    """Check the command line, then run its experiment, or with ``--multirun`` its sweep.

    Returns:
        The exit code.

    Raises:
        ConfigError: the command line or the config is wrong.
    """
    flags = get_args_parser().parse_intermixed_args(arguments)
    if flags.help:
        print(_HELP.format(groups=_groups(Sources(flags.config_dir)), conf=conf_dir()))
        return Exit.DONE
    if flags.cfg or flags.info or flags.shell_completion or flags.hydra_help:
        return _hand_to_hydra(flags)
    sources = Sources(flags.config_dir, flags.config_path, flags.config_name)
    if flags.multirun:
        refuse_learners("--multirun")
        return sweep(flags.overrides, sources)
    resumes = any(text.lstrip("+").startswith("resume=") for text in flags.overrides)
    if not resumes:
        import_from_here()
    if own := [text for text in flags.overrides if is_sweep_setting(text)]:
        raise ConfigError([Problem(text, "is a setting of --multirun: add the flag.") for text in own])
    composed = load(flags.overrides, sources)
    if composed.values.get("resume") is None:
        check_config(composed)
    if trusted(composed):
        import_from_here()
    return run(composed, flags.overrides)


def run(composed: Composed, overrides: list[str]) -> int:
    """Start or resume a run, and print where the results are.

    Returns:
        The exit code.

    Raises:
        ConfigError: the config cannot be built, or the run cannot be resumed with it.
        RlexpError, OSError: the run cannot be begun in its folder, or its checkpoint not be read.
    """
    from rlexp.runs.resume import open_command
    from rlexp.runs.session import console_logging
    from rlexp.runs.stops import Stopped

    with _learners() as group, console_logging(logging.INFO if group.main else logging.ERROR):
        start = group.from_main(lambda: open_command(composed, overrides))
        if group.from_main(lambda: start.complete):
            if group.main:
                print(f"{start.run.path} is complete; total_frames=... extends it")
            return Exit.DONE

        # Only now: it imports torch, and what is refused is refused at once.
        from rlexp.training.trainer import Trainer

        trainer = Trainer(start.config, start.run, start.checkpoint, group)
        try:
            summary = trainer.fit()
        except Stopped as stopped:
            if not group.main:
                return stopped.exit_code
            again = shlex.join([f"resume={trainer.run.path}", *trust_argument(start.config.to_dict())])
            print(printable(f"{stopped}; the run is saved. Resume it with: {train_command(group.size)} {again}"))
            return stopped.exit_code
        except Exception as error:
            code = report_error("rlexp-train", RuntimeError(f"{type(error).__name__}: {error}"))
            print(f"Traceback in {trainer.run.log}", file=sys.stderr)
            return code
    if not group.main:
        return Exit.DONE
    print(f"{summary['frames']:,} frames in {summary['seconds']:.1f} s; results in {trainer.run.path}")
    episodes = start.config.evaluation.episodes
    print(f"final evaluation: mean return {summary['final']['eval/return']:.1f} over {episodes} episodes")
    return Exit.DONE


def _learners() -> AbstractContextManager[Group]:
    """The learners of this run: those that torchrun has started, or this process alone.

    Raises:
        GroupError: the others did not come.
    """
    if launched() == 1:
        return nullcontext(ALONE)
    from rlexp.distributed.process_group import ProcessGroup

    return closing(ProcessGroup.from_environment())


def _hand_to_hydra(flags: argparse.Namespace) -> int:
    """Let Hydra print its config, its help or the completion script."""
    import hydra

    if not flags.shell_completion:
        sources = Sources(flags.config_dir, flags.config_path, flags.config_name)
        options = [argument for argument in sys.argv if argument not in flags.overrides]
        sys.argv = [*options, *tolerant(flags.overrides, sources)]
        if folders := search_path(sources):
            sys.argv.append(f"hydra.searchpath=[{','.join(folders)}]")
    hydra.main(config_path=str(conf_dir()), config_name="train", version_base=VERSION_BASE)(print)()
    return Exit.DONE


def _groups(sources: Sources) -> str:
    return "\n".join(
        f"  {group:16} {', '.join(options)}" for group, options in groups(sources).items() if group != "search"
    )
