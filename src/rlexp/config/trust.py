"""What a config that is not the user's own may have this process build: an allow list, never a deny list.

A checkpoint, or a run's, sweep's or search's folder, may come from anyone. What is listed here is built out of it; all
else needs ``trust=``. The boundary is described in docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlexp.config.problems import Problem

ROOMS = ("collectors", "envs", "loggers", "losses", "optim", "policies")
"""The packages of rlexp that hold `rlexp.config.Config` classes which a config may name."""

_SETS = {
    ("rlexp.envs.normalization",): "RunningObservationNorm",
    ("rlexp.envs.mujoco.tasks",): """
        Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher Swimmer
        Walker2d
    """,
    ("rlexp.envs.cartpole",): "CartPole",
    ("rlexp.optim.schedules",): "KLAdaptive",
    ("rlexp.policies.encoders",): "CNN Identity MLP",
    # None of them takes a callable, reads a file, downloads weights or imports by name. R3M, VIP, VC1 and Tokenizer
    # do; so do BatchSize, Burn-in, ConditionalSkip, Hash, TensorDictPrimer, Terminate, Unary and EndOfLife, which
    # reads any attribute.
    ("torchrl.envs", "torchrl.envs.transforms", "torchrl.envs.transforms.transforms"): """
        ActionDiscretizer ActionMask ActionScaling BinarizeReward CatFrames CatTensors CenterCrop ClipTransform Crop
        DoubleToFloat FiniteTensorDictCheck FlattenAction FlattenObservation FrameSkipTransform GrayScale InitTracker
        LineariseRewards NoopResetEnv ObservationNorm PermuteTransform RandomTruncationTransform RenameTransform Resize
        RewardClipping RewardScaling RewardSum SignTransform SqueezeTransform Stack StepCounter SuccessReward
        TargetReturn TimeMaxPool Timer ToTensorImage TrajCounter UnsqueezeTransform VecNorm
    """,
    ("torchrl.envs", "torchrl.envs.transforms"): "VecNormV2",
    ("torchrl.envs",): "DMControlEnv GymEnv PendulumEnv",
    ("torchrl.envs.libs.gym",): "GymEnv",
    ("torchrl.envs.libs.dm_control",): "DMControlEnv",
    ("torchrl.objectives", "torchrl.objectives.ppo"): "ClipPPOLoss KLPENPPOLoss PPOLoss",
    ("torchrl.objectives", "torchrl.objectives.a2c"): "A2CLoss",
    ("torchrl.objectives", "torchrl.objectives.reinforce"): "ReinforceLoss",
    ("torchrl.modules", "torchrl.modules.models"): "ConvNet MLP",
    ("torch.optim",): "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD",
    ("torch.optim.lr_scheduler",): """
        ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR LinearLR MultiStepLR OneCycleLR
        PolynomialLR ReduceLROnPlateau StepLR
    """,
    ("torch.nn",): """
        AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d BatchNorm1d
        BatchNorm2d Bilinear CELU Conv1d Conv2d Dropout ELU Flatten GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish
        Hardtanh Identity LayerNorm LazyLinear LeakyReLU Linear LogSigmoid LogSoftmax MaxPool1d MaxPool2d Mish PReLU
        RMSNorm RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh Tanhshrink
        Threshold Unflatten
    """,
}
ALLOWED = frozenset(
    f"{module}.{name}" for modules, names in _SETS.items() for module in modules for name in names.split()
)
"""Paths of the classes that a `Node` of such a config may name."""

# Modules of rlexp's own that register environments.
_MODULES = ("rlexp.envs.partial", "rlexp.envs.seen_target")

# These hand what they do not know to a simulator's constructor: only what is listed is known to be harmless.
_ARGUMENTS = {
    "GymEnv": {"env_name", "frame_skip", "from_pixels", "pixels_only", "categorical_action_encoding", "device"},
    "DMControlEnv": {"env_name", "task_name", "frame_skip", "from_pixels", "pixels_only", "device"},
}

_RAY = {"num_cpus", "num_gpus", "object_store_memory", "namespace", "include_dashboard", "log_to_driver"}

RESOLVED = (
    "reads the environment or builds values of text, and is not taken from a resumed folder. "
    "If it is yours, say trust=[hydra]."
)
"""The message for an override or a value that `calls_a_resolver` and is not the user's own."""

_REPEATED = re.compile(r"\$\{[\w.\[\]]+\}", re.ASCII)
_WORDS = re.compile(r"[\w +\-]{0,80}", re.ASCII)
_DEVICE = re.compile(r"(cpu|cuda|mps|meta)(:\d{1,3})?", re.ASCII)
_ENV_ID = re.compile(r"([\w-]{1,80}/)?[\w.-]{1,80}", re.ASCII)

_LIMITS = (
    (re.compile(r"threads|env\.(num_envs|num_workers|(.+\.)?frame_skip)"), 4096),
    (re.compile(r"collector\.num_workers|evaluation\.episodes"), 4096),
    (re.compile(r"env\.pixels\.size"), 1024),
    (re.compile(r"env\.pixels\.stack"), 64),
    (re.compile(r"policy\..+"), 65_536),
    (re.compile(r"env\.transforms\..+\.(N|T|dim|w|h|size|noops|frame_skip|num_intervals)(\.\d+)?"), 4096),
)


class Trust:
    """What may be built out of values that are not the user's own.

    Args:
        packages: what the user trusts, by the names of the packages; one text is one name.
        own: values that are the user's own, such as those that the command line composed: what is equal at the same
            path is not asked about.
    """

    def __init__(self, packages: Iterable[str], own: Mapping[str, Any] | None = None) -> None:
        self._packages = frozenset([packages] if isinstance(packages, str) else packages)  # not a text's letters
        self._own = own

    def of(self, package: str) -> bool:
        """Whether the user trusts a package, or the package that a dotted path begins with."""
        return package.partition(".")[0] in self._packages

    def may_import(self, module: str) -> bool:
        """Whether a module that registers an environment may be imported."""
        return module in _MODULES or self.of(module)

    def is_own(self, path: str, value: object) -> bool:
        """Whether the user gave the same value at the same path."""
        found: Any = self._own
        for part in path.split("."):
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, Mapping) and part in found:
                found = found[part]
            else:
                return False
        return bool(found == value) and type(found) is type(value)

    def may_build(self, target: str) -> bool:
        """Whether the class at a dotted path may be built: it is listed, or the user trusts its package."""
        return target in ALLOWED or self.of(target)

    def may_read(self, target: str) -> bool:
        """Whether the path may be that of a `rlexp.config.Config`, which the schema then decides."""
        parts = target.split(".")
        own = parts[0] == "rlexp" and 3 <= len(parts) <= 4 and parts[1] in ROOMS and parts[2:-1] in ([], ["config"])
        return own or self.of(target)

    def bad_arguments(self, target: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """The arguments of an allowed class that would do more than set a number or name a key.

        Yields:
            The argument's path, the package to trust for it, and the value.
        """
        package, name = target.partition(".")[0], target.rpartition(".")[2]
        if self.of(target):
            return
        for key, value in arguments.items():
            if key not in _ARGUMENTS.get(name, arguments):
                yield key, package, str(value)
            elif key == "env_name" and isinstance(value, str):
                module, colon, _ = value.rpartition(":")
                if colon and not (module.isidentifier() and self.of(module)):
                    yield key, module, value
                elif not colon and not _ENV_ID.fullmatch(value):
                    yield key, package, value
            elif not key.endswith(("key", "keys", "keys_inv")):
                yield from ((path, package, text) for path, text in texts_that_name(value, key))
            elif not _names_entries(value):
                yield key, package, str(value)


def _names_entries(value: object) -> bool:
    """Whether it is no more than names of a tensordict's entries, in nested lists, or a flag that concerns them."""
    return all(map(_names_entries, value)) if isinstance(value, list) else not isinstance(value, Mapping)


def calls_a_resolver(text: str) -> bool:
    """Whether a text has an interpolation that does more than repeat a setting: read the environment, build values."""
    return "${" in _REPEATED.sub("", text)


def texts_that_name(value: object, path: str) -> Iterator[tuple[str, str]]:
    """The texts in plain values that may name a module, a file or an address, each with its path.

    Numbers and plain words name none. What has a ``_target_`` is a node, and is checked as one.
    """
    if isinstance(value, str):
        if not (_WORDS.fullmatch(value) or _DEVICE.fullmatch(value)):
            yield path, value
    elif isinstance(value, Mapping):
        if "_target_" not in value:
            for key, item in value.items():
                if not _WORDS.fullmatch(str(key)):
                    yield f"{path}.{key}", str(item)
                else:
                    yield from texts_that_name(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts_that_name(item, f"{path}.{index}")


def of_ray(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The arguments of ``ray.init`` that run something on a machine, or reach another one."""
    for key, value in arguments.items():
        if key not in _RAY:
            yield key, str(value)
        else:
            yield from texts_that_name(value, key)


def most_weights(policy: object) -> int:
    """How many weights a policy with these plain settings may have, to the order of magnitude.

    Networks that only a trusted package builds are not counted.
    """
    if not isinstance(policy, Mapping):
        return 0
    named = [*policy.values(), *_encoders(policy)]
    nodes = [value for value in named if isinstance(value, Mapping) and value.get("_target_") in ALLOWED]
    plain = {key: value for key, value in policy.items() if key != "sequence_length" and not isinstance(value, Mapping)}
    return sum(map(_most_weights, [plain, *nodes]))


def _encoders(policy: Mapping[str, Any]) -> list[Any]:
    encoders = policy.get("encoders")
    return list(encoders.values()) if isinstance(encoders, Mapping) else []


def _most_weights(settings: Mapping[str, Any]) -> int:
    """Square layers of the largest width, as many as there may be, and likewise convolutions."""
    numbers = {key: _positive(value) for key, value in settings.items()}
    kernel = max([1, *(n for key, found in numbers.items() if "kernel" in key for n in found)])
    depth = max([1, *numbers.pop("depth", []), *map(len, numbers.values())])
    channels = max([0, *numbers.pop("channels", [])])
    width = max([0, *(n for key, found in numbers.items() if "kernel" not in key for n in found)])
    if "num_cells" in settings and "kernel_sizes" in settings and "channels" not in settings:  # torchrl's ConvNet
        width, channels = 0, width
    gates = 8 if "hidden_size" in settings else 1  # of a gated layer: four for its inputs, four for its state
    return depth * (gates * width**2 + channels**2 * kernel**2)


def _positive(value: object) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [int(n) for n in found if isinstance(n, int | float) and 0 < n < 2**63]


def beyond_limits(settings: Iterable[tuple[str, Any]]) -> Iterator[Problem]:
    """The settings whose values would take more memory than any run that was trained.

    Args:
        settings: every setting under its full path.
    """
    for key, value in settings:
        numbers = value if isinstance(value, list) else [value]
        for pattern, limit in _LIMITS:
            if pattern.fullmatch(key) and any(isinstance(n, int | float) and abs(n) > limit for n in numbers):
                message = f"is more than {limit:,}, which a config that is not your own may not ask for."
                yield Problem(key, f"{message} If you trust it, say trust=[rlexp].", str(value)[:60])
