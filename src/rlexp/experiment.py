"""The schema of a whole experiment: what ``conf/train.yaml`` composes to, and the rules across its groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from rlexp.collectors import CollectorConfig, SyncCollectorConfig
from rlexp.config import (
    Composed,
    Config,
    ConfigError,
    Count,
    Integer,
    Node,
    Positive,
    Problem,
    Sources,
    load,
    name_presets,
    read,
)
from rlexp.config.legacy import current_config
from rlexp.config.reader import BUILTIN, named_packages
from rlexp.config.redaction import with_secrets
from rlexp.config.trust import calls_a_resolver
from rlexp.envs import EnvConfig
from rlexp.loggers import LoggerConfig
from rlexp.losses import DistillConfig, LossConfig, NPGConfig, REPPOConfig
from rlexp.optim import OptimConfig
from rlexp.policies import PolicyConfig, RecurrentConfig

# What rlexp-train reads itself: how a run starts is no part of what it is.
COMMAND_SETTINGS = ("resume", "trust", "sweep")


class SweepConfig(Config):
    """How ``rlexp-train --multirun`` runs its jobs.

    Attributes:
        resume: folder of the sweep to go on with; None begins a new one.
        fail_fast: whether the first job that fails stops the others, which are saved first.
    """

    resume: str | None = None
    fail_fast: bool = False


class _CommandConfig(Config):
    sweep: SweepConfig


class EvaluationConfig(Config):
    """When and how the deterministic policy is evaluated.

    Attributes:
        interval: simulator frames between evaluations; there is always one at the end.
        episodes: whole episodes of each evaluation.
        average: decay, per batch, of a running average of the actor's weights (`rlexp.training.average`), which is
            evaluated, and is the policy of a checkpoint, in their place; None takes the weights themselves.
        video_interval: simulator frames between videos of an evaluation's first episode, with one at the end; None
            records none.
    """

    interval: Count
    episodes: Count
    average: Annotated[float, Field(gt=0, lt=1)] | None
    video_interval: Count | None

    def missing_requirements(self) -> Iterator[Problem]:
        """The encoder of a video."""
        if self.video_interval is not None:
            try:
                import imageio_ffmpeg  # noqa: F401
            except ImportError:
                message = "needs an encoder: pip install 'rlexp[video]'."
                yield Problem("video_interval", message, str(self.video_interval))


class CheckpointConfig(Config):
    """What is kept on disk.

    Attributes:
        interval: simulator frames between checkpoints; None saves none by this count.
        interval_minutes: minutes between checkpoints, whatever their frames; None saves none by the clock.
        keep_last: newest checkpoints kept, besides the best.
    """

    interval: Count | None
    interval_minutes: Positive | None
    keep_last: Annotated[Integer, Field(ge=2)]


class ExperimentConfig(Config):
    """Everything that decides what a run does.

    Attributes:
        total_frames: budget in simulator frames; training ends with the first batch that reaches it.
        num_epochs: passes over each batch.
        critic_num_epochs: passes of the critic alone over each batch, after those of the policy, which then leave it as
            it is; None is ``num_epochs``, and where ``critic_minibatch_size`` is None as well, one loss trains both.
        critic_minibatch_size: agent steps of one gradient step in those passes; None is ``minibatch_size``.
        target_kl: KL from the policy that acted, in nats, beyond which no further pass begins; None makes all of them.
        target_kl_check: whether the KL is checked only after each pass, or also after each minibatch, which then ends
            the pass.
        recompute_advantage: before each pass, instead of once per batch.
        minibatch_size: agent steps of one gradient step.
        max_grad_norm: bound on the norm of each gradient.
        seed: everything random follows from it.
        device: ``auto`` is cuda where there is one, else cpu.
        threads: torch's threads; ``auto`` decides by the work of a minibatch and the cores there are.
        kernels: ``auto`` puts an equal and faster kernel in the place of each torchrl part that has one
            (`rlexp.kernels`), and logs which; false runs torchrl's parts themselves.
        compile: compile a loss by ``torch.compile``, unless its gradient is written out, which is faster still, or it
            reads sequences; ``auto`` does in long runs.
        cuda_graph: run each step of the optimizer as one CUDA graph; needs a GPU, a shipped loss and a
            policy that is not recurrent.
        checks: assert what costs time: the environment's specs and repeatability before training, what operation makes
            a gradient NaN, and that the last checkpoint holds the agent.
        callbacks: objects with methods of `rlexp.callbacks.Callback`; names are free.
        warm_start: a checkpoint or run whose weights and statistics the run begins with; None begins with fresh ones.
    """

    env: EnvConfig
    policy: PolicyConfig
    collector: CollectorConfig
    loss: LossConfig
    optim: OptimConfig
    logger: LoggerConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    total_frames: Count
    num_epochs: Count
    critic_num_epochs: Count | None
    critic_minibatch_size: Count | None
    target_kl: Positive | None
    target_kl_check: Literal["epoch", "minibatch"]
    recompute_advantage: bool
    minibatch_size: Count
    max_grad_norm: Positive
    seed: Annotated[Integer, Field(ge=0, lt=2**32)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Count | Literal["auto"]
    kernels: Literal["auto", False]
    compile: bool | Literal["auto"]
    cuda_graph: bool
    checks: bool
    callbacks: dict[str, Node]
    warm_start: str | None

    @property
    def steps_per_batch(self) -> int:
        """Agent steps of one batch, all environments together."""
        return self.collector.frames_per_batch // self.env.frame_skip

    @property
    def num_batches(self) -> int:
        """Batches of the whole run: as many as it takes to reach ``total_frames``."""
        return -(-self.total_frames // self.collector.frames_per_batch)

    @property
    def critic_apart(self) -> bool:
        """Whether the critic is trained in passes of its own."""
        return self.critic_num_epochs is not None or self.critic_minibatch_size is not None

    @property
    def critic_setting(self) -> str:
        """The setting by which it is."""
        return "critic_num_epochs" if self.critic_num_epochs is not None else "critic_minibatch_size"

    @property
    def minibatches_per_epoch(self) -> int:
        """Gradient steps of one pass over a batch."""
        return self.steps_per_batch // self.minibatch_size

    @property
    def num_minibatches(self) -> int:
        """Gradient steps of the whole run."""
        return self.num_batches * self.num_epochs * self.minibatches_per_epoch

    @property
    def use_kernels(self) -> bool:
        """Whether kernels may stand in for torchrl's parts."""
        return self.kernels == "auto"

    def missing_requirements(self) -> Iterator[Problem]:
        """What the loss needs, and packages that the logger and the videos do."""
        yield from (problem.under("loss.") for problem in self.loss.missing_requirements())
        yield from (problem.under("logger.") for problem in self.logger.missing_requirements())
        yield from (problem.under("evaluation.") for problem in self.evaluation.missing_requirements())

    def problems(self) -> Iterator[Problem]:
        """Rules across groups."""
        frames, skip, envs = self.collector.frames_per_batch, self.env.frame_skip, self.env.num_envs
        if frames % (envs * skip):
            unit = envs * skip
            lower, upper = frames // unit * unit, -(-frames // unit) * unit
            fits = f"{lower} or {upper}" if lower else f"{upper}"
            message = (
                f"must be a multiple of env.num_envs * env.frame_skip = {envs} * {skip} = {unit}, so that every "
                f"environment makes as many steps: {fits}."
            )
            yield Problem("collector.frames_per_batch", message, str(frames))
        elif larger := [k for k in ("minibatch_size", "critic_minibatch_size")
                        if (getattr(self, k) or 0) > self.steps_per_batch]:  # fmt: skip
            message = f"is larger than a batch: collector.frames_per_batch gives {self.steps_per_batch} agent steps."
            yield from (Problem(key, message, str(getattr(self, key))) for key in larger)
        elif isinstance(self.policy, RecurrentConfig):
            length = self.policy.sequence_length
            for key, steps, of in (
                ("collector.frames_per_batch", self.steps_per_batch // envs, "each environment's steps of a batch"),
                ("minibatch_size", self.minibatch_size, "the steps of a minibatch"),
            ):
                if steps % length:
                    message = f"must let {of}, now {steps}, be a multiple of policy.sequence_length = {length}."
                    yield Problem(key, message, str(frames if key.startswith("collector") else steps))
        yield from self.loss.problems_with(self)
        once = self.num_epochs == 1 and self.minibatches_per_epoch > 1 and self.target_kl_check == "epoch"
        if once and self.target_kl is not None:
            message = "prevents further epochs, and there is only one: increase num_epochs."
            yield Problem("target_kl", message, f"{self.target_kl:g}")
        if self.target_kl is None and self.target_kl_check != "epoch":
            yield Problem("target_kl_check", "has nothing to check: give target_kl.", self.target_kl_check)
        if self.total_frames < frames:
            message = f"is less than one batch: collector.frames_per_batch is {frames}."
            yield Problem("total_frames", message, str(self.total_frames))
        yield from self.collector.problems_with(self.env)

    def share(self, learners: int) -> ExperimentConfig:
        """The same, with the environments and the frames of a batch that one of so many learners simulates."""
        env = self.env.model_copy(update={"num_envs": self.env.num_envs // learners})
        frames = self.collector.frames_per_batch // learners
        collector = self.collector.model_copy(update={"frames_per_batch": frames})
        return self.model_copy(update={"env": env, "collector": collector})

    def problems_for(self, learners: int) -> Iterator[Problem]:
        """What keeps so many learners from training it together."""
        if learners == 1:
            return
        if over := self.env.num_envs % learners:
            lower, upper = self.env.num_envs - over, self.env.num_envs - over + learners
            fits = f"{lower} or {upper}" if lower else f"{upper}"
            message = f"must be a multiple of {learners}, so that each of the learners simulates as many: {fits}."
            yield Problem("env.num_envs", message, str(self.env.num_envs))
        several = f"with several learners (torchrun started {learners} processes)"
        if isinstance(self.loss, NPGConfig | DistillConfig | REPPOConfig):
            yield Problem("loss", f"must be another {several}, such as loss=clip_ppo.")
        if not isinstance(self.collector, SyncCollectorConfig):
            yield Problem("collector", f"must be sync {several}: each of them steps its share of the environments.")
        if self.kernels is False:
            yield Problem("kernels", f"must be auto {several}.", "false")
        for key, value in (("compile", self.compile is True), ("cuda_graph", self.cuda_graph), ("checks", self.checks)):
            if value:
                yield Problem(key, f"must be false {several}.", "true")
        if self.callbacks:
            yield Problem("callbacks", f"must be empty {several}.", ", ".join(self.callbacks))
        if ":" in self.device:
            message = f"names one device, and each learner takes the one of its LOCAL_RANK {several}: device=cuda."
            yield Problem("device", message, self.device)


def load_config(overrides: Sequence[str] = (), config_dir: str | None = None) -> ExperimentConfig:
    """Compose and check an experiment from Python, as the command line does.

    Args:
        overrides: as after ``rlexp-train``, e.g. ``["env=hopper", "loss.clip_epsilon=0.1"]``.
        config_dir: a folder of your own configs.

    Raises:
        ConfigError: with every problem found.
    """
    composed = load(overrides, Sources(config_dir=config_dir))
    problems = []
    if composed.values.get("resume") is not None:
        problems.append(Problem("resume", "is no part of an experiment: use rlexp.Trainer.resume(PATH, overrides)."))
    if any(text.lstrip("+").startswith("hydra.run.dir=") for text in overrides):
        problems.append(Problem("hydra.run.dir", "is no part of an experiment: give rlexp.Trainer its run_dir."))
    if problems:
        raise ConfigError([*composed.problems, *problems])
    return check_config(composed)


def check_config(composed: Composed, trust: Collection[str] | None = None) -> ExperimentConfig:
    """Check what a command line composed to.

    Args:
        composed: what it composed to.
        trust: None where it is the user's own; for one that a folder's plan holds, the packages that it may import
            beside what rlexp itself builds (docs/security.md).

    Raises:
        ConfigError: with every problem found.
    """
    problems = list(composed.problems)
    try:
        sweep_settings(composed)
    except ConfigError as error:
        problems += error.problems
    if trust is not None:
        granted = [str(package) for package in composed.values.get("trust") or [] if str(package) not in trust]
        message = "is not taken from a resumed folder: if you trust it, say trust=[{}] yourself."
        problems += [Problem("trust", message.format(package), package) for package in granted]
    values = {key: value for key, value in composed.values.items() if key not in COMMAND_SETTINGS}
    try:
        return read(ExperimentConfig, values, [*problems, *with_secrets(values, {})[1]], trust=trust)
    except ConfigError as error:
        raise ConfigError(name_presets(error.problems, composed)) from None


def trusted(composed: Composed) -> set[str]:
    """The packages that a command line trusts: those that it names, in ``trust`` or as its own settings."""
    return {*own_packages(composed.values), *map(str, composed.values.get("trust") or [])}


def own_packages(values: Mapping[str, Any]) -> set[str]:
    """The packages that an experiment's values, nested or flat, name beside those that rlexp builds on."""
    return named_packages(values) - {*BUILTIN}


def trust_argument(values: Mapping[str, Any], texts: Iterable[str] = ()) -> list[str]:
    """What a command that reads these values from a folder has to be given: ``trust=[...]``, or nothing.

    Args:
        values: plain values of one experiment or several.
        texts: overrides and other texts of the folder's plan, which are resolved anew.
    """
    resolved = {"hydra"} if any(map(calls_a_resolver, texts)) else set()
    return trusting(own_packages(values) | resolved)


def trusting(packages: Iterable[str]) -> list[str]:
    """The setting that trusts these packages; nothing where there are none."""
    names = ",".join(sorted({*packages}))
    return [f"trust=[{names}]"] if names else []


def sweep_settings(composed: Composed) -> SweepConfig:
    """What a command line says about a sweep.

    Raises:
        ConfigError: with every problem found.
    """
    return read(_CommandConfig, {"sweep": composed.values.get("sweep", {})}).sweep


def read_config(
    values: Mapping[str, Any], trust: Collection[str] | None = None, secrets: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Check plain values, such as a run's saved ``config.yaml``.

    Args:
        values: plain values.
        trust: None where the values are the user's own; for a checkpoint's, the packages that they may import beside
            what rlexp itself builds (docs/security.md).
        secrets: values of the settings that were hidden when they were saved, by their full paths.

    Raises:
        ConfigError: with every problem found.
    """
    current, problems = with_secrets(current_config(values), secrets or {})
    if problems:
        raise ConfigError(problems)
    return read(ExperimentConfig, current, trust=trust)
