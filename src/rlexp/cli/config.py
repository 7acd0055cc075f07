"""``rlexp-config``: list options, show the composed config, copy an option to edit, check a command line, diff runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlexp.cli.common import Exit, import_from_here, run_command
from rlexp.config import (
    ConfigError,
    Problem,
    Sources,
    check_targets,
    groups,
    load,
    option_text,
    origins,
)
from rlexp.config.redaction import redact
from rlexp.experiment import check_config
from rlexp.losses import NPGConfig
from rlexp.text import printable


def main() -> None:
    """Console entry."""
    run_command("rlexp-config", config)


def config(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names.

    Returns:
        The exit code; of ``diff``, as of diff(1), 1 where the runs differ.

    Raises:
        ConfigError: the config or the command line is wrong, or a run to compare cannot be read.
    """
    flags = _parse(arguments)
    if flags.command == "diff":
        return _diff(Path(flags.run_a), Path(flags.run_b))
    import_from_here()
    sources = Sources(config_dir=flags.config_dir)
    match flags.command:
        case "list":
            print(_listing(groups(sources), flags.group))
        case "show":
            (_specs if flags.specs else _show)(flags.overrides, sources)
        case "copy":
            print(f"Copied to {_copy(flags.option, flags.destination, sources)}")
        case "check":
            _check(flags.overrides, sources)
    return Exit.DONE


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Read the arguments; overrides may come before and after flags."""
    parser = _parser()
    flags, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(flags, "overrides") or any(argument.startswith("-") for argument in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        flags.overrides += rest
    return flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlexp-config", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|copy|check|diff")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder of your own options")
    listing = commands.add_parser("list", parents=[common], help="groups and their options")
    listing.add_argument("group", nargs="?", help="only this group")
    overrides = argparse.ArgumentParser(add_help=False, parents=[common])
    overrides.add_argument("overrides", nargs="*", metavar="key=value", help="as after rlexp-train")
    show = commands.add_parser("show", parents=[overrides], help="the composed config, and where each value comes from")
    show.add_argument(
        "--specs", action="store_true", help="build the environment, check and show its specs, take three random steps"
    )
    commands.add_parser("check", parents=[overrides], help="check a command line without running it")
    copy = commands.add_parser("copy", parents=[common], help="a commented copy of an option, to edit")
    copy.add_argument("option", metavar="GROUP/OPTION", help="for example loss/clip_ppo")
    copy.add_argument(
        "destination", nargs="?", metavar="DEST", help="a file or folder; default: conf/GROUP/OPTION.yaml"
    )
    diff = commands.add_parser("diff", help="how two runs differ; exit code 0: they do not, 1: they do")
    diff.add_argument("run_a", metavar="RUN_A", help="a run's folder")
    diff.add_argument("run_b", metavar="RUN_B", help="another's")
    return parser


def _listing(found: Mapping[str, Mapping[str, str]], only: str | None) -> str:
    if only is not None and only not in found:
        raise ConfigError([Problem(only, f"there is no such group. Available: {', '.join(found)}.")])
    chosen = found if only is None else {only: found[only]}
    width = max(len(name) for options in chosen.values() for name in options)
    return "\n".join(
        "\n".join([group, *(f"  {name:{width}}  {text}" for name, text in options.items())])
        for group, options in chosen.items()
    )


def _show(overrides: list[str], sources: Sources) -> None:
    composed = load(overrides, sources)
    if composed.problems:
        raise ConfigError(composed.problems)
    found = {key: redact(origin) for key, origin in origins(overrides, sources).items()}
    lines = list(_lines(redact(composed.values), "", found))
    width = min(60, max(len(text) for text, _ in lines))
    for text, origin in lines:
        print(f"{text:{width}}  # {origin}" if origin else text)


def _specs(overrides: list[str], sources: Sources) -> None:
    """Print of an environment what torchrl's PPO tutorial prints: its specs, their check and a random rollout."""
    experiment = check_config(load(overrides, sources))
    check_targets(experiment)

    from torchrl.envs.utils import check_env_specs

    from rlexp.envs.normalization import init_normalization, observation_norms
    from rlexp.seeding import seed_everything

    seed_everything(experiment.seed)
    spec = experiment.env
    env = spec.build(spec.num_envs)
    try:
        env.set_seed(experiment.seed)
        init_normalization(env, spec.init_random_steps)
        for norm in observation_norms(env):
            print("normalization constant shape:", norm.loc.shape)
        for name in ("observation_spec", "reward_spec", "input_spec", "action_spec"):
            print(f"{name}:", getattr(env, name))
        try:
            check_env_specs(env)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError([Problem("env", f"does not agree with its specs: {error}")]) from error
        print("check_env_specs: passed")
        rollout = env.rollout(3)
        print("rollout of three steps:", rollout)
        print("Shape of the rollout TensorDict:", rollout.batch_size)
    finally:
        env.close()


def _lines(values: Mapping[str, object], path: str, found: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    indent = "  " * path.count(".")
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", None
            yield from _lines(value, f"{path}{key}.", found)
        else:
            yield f"{indent}{key}: {json.dumps(value)}", found.get(f"{path}{key}")


def _copy(option: str, destination: str | None, sources: Sources) -> Path:
    option = option.removesuffix(".yaml")
    text = option_text(option, sources)
    target = Path(destination) if destination else Path("conf") / f"{option}.yaml"
    if target.is_dir():
        target /= f"{Path(option).name}.yaml"
    if target.exists():
        raise ConfigError([Problem(str(target), "exists already; name another destination.")])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def _check(overrides: list[str], sources: Sources) -> None:
    experiment = check_config(load(overrides, sources))
    check_targets(experiment)
    steps = experiment.num_epochs * experiment.minibatches_per_epoch
    each = f"{steps:,} gradient steps each"
    if isinstance(experiment.loss, NPGConfig):
        each = f"one step of the policy and {steps:,} of the critic each"
    elif experiment.critic_apart:
        epochs = experiment.critic_num_epochs or experiment.num_epochs
        size = experiment.critic_minibatch_size or experiment.minibatch_size
        critic = epochs * (experiment.steps_per_batch // size)
        each = f"{steps:,} gradient steps of the policy and {critic:,} of the critic each"
    print(f"OK: {experiment.num_batches:,} batches of {experiment.collector.frames_per_batch:,} frames, {each}.")
    if unused := experiment.steps_per_batch % experiment.minibatch_size:
        print(f"{unused} of a batch's {experiment.steps_per_batch:,} steps are left out of each epoch, at random.")


def _diff(a: Path, b: Path) -> int:
    """Print what two runs differ in."""
    from rlexp.report.difference import difference, to_lines
    from rlexp.report.runs import ReportError

    try:
        found = difference(a, b)
    except (ReportError, OSError) as error:  # as of diff(1), 1 is the exit code of runs that differ
        raise ConfigError([Problem("diff", str(error))]) from error
    print("\n".join([printable(f"A: {a}"), printable(f"B: {b}"), "", *to_lines(found)]))
    return 1 if found else Exit.DONE
