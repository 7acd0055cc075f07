"""A trained agent, loaded from its checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical
from torchrl.envs import Compose, ObservationNorm, Transform, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp.agent.video import VideoError, rendering
from rlexp.config import ConfigError
from rlexp.envs import EnvConfig
from rlexp.envs.actions import ACTION_MASK, in_own_form
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.normalization import RunningObservationNorm
from rlexp.envs.state import cloned, is_own, load_buffers
from rlexp.envs.torchrl import entries
from rlexp.experiment import ExperimentConfig, read_config
from rlexp.floats import float32_by_default
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import carry_state
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import Checkpoint
from rlexp.runs.errors import CheckpointError

_BOUNDLESS = 1e6
ROUNDING = 1e-5  # share of an action's range: float32 sums in another order


class Agent:
    """The networks of a checkpoint and an environment with its normalisation statistics, frozen.

    `close` it when its environment is not needed any more.

    With ``evaluation.average`` the actor is the average, as in the run's evaluations, and ``averaged`` is true.

    Args:
        source: a checkpoint; its path, that of ``checkpoints/best``, or a run's folder for its latest one.
        device: where the networks go.
        trust: packages that the checkpoint's config may import besides what rlexp itself builds (docs/security.md).
        secrets: values of the settings that were hidden when it was saved, by their full paths.
        config: the checkpoint's config, checked already; None reads it with ``trust`` and ``secrets``.
        render: make simulators that can render images.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit the environment as installed here.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
        VideoError: ``render`` is set and the environment cannot render.
    """

    def __init__(
        self,
        source: Checkpoint | Path | str,
        device: torch.device | str = "cpu",
        trust: Collection[str] = (),
        *,
        secrets: Mapping[str, Any] | None = None,
        config: ExperimentConfig | None = None,
        render: bool = False,
    ) -> None:
        saved = source if isinstance(source, Checkpoint) else checkpoint.load(Path(source))
        self.path = saved.path
        self.frames = saved.state.frames
        self.experiment: ExperimentConfig = config or read_config(saved.config, trust, secrets)
        saved.check_size()
        with self._named(), float32_by_default():
            self._bring_back(saved, torch.device(device), render=render)

    def _bring_back(self, saved: Checkpoint, device: torch.device, *, render: bool) -> None:
        spec = rendering(self.experiment.env) if render else self.experiment.env
        # As many environments as in the run's evaluations: matrix products of another size round differently.
        self.env: TransformedEnv = spec.on(device).build(self.experiment.evaluation.episodes)
        try:
            self._restore_all(saved, spec, device)
        except BaseException:
            self.close()
            raise

    def _restore_all(self, saved: Checkpoint, spec: EnvConfig, device: torch.device) -> None:
        """Put what was saved into the environment's transforms, and into new networks."""
        differences: list[str] = []
        transforms = list(self.env.transform)
        first = len(transforms) - len(spec.transforms)  # one for action masks may come before them
        for index, (name, transform) in enumerate(zip(spec.transforms, transforms[first:], strict=True), first):
            prefix = f"transforms.{index}."
            state = {k.removeprefix(prefix): v for k, v in saved.state.transforms.items() if k.startswith(prefix)}
            differences += self._restore(f"env.transforms.{name}", transform, state)
        self._refuse(differences)
        self.networks: ActorCritic = self.experiment.policy.build(self.env, device)
        average = saved.state.evaluator.get("average")
        actor = average["actor"] if average is not None and average["count"] else saved.state.actor
        self.averaged = actor is not saved.state.actor
        for name, state in (("actor", actor), ("critic", saved.state.critic)):
            differences += _differences(name, getattr(self.networks, name).state_dict(), state)
        self._refuse(differences)
        carry_state(self.env, self.networks.actor)
        self.networks.critic.load_state_dict(saved.state.critic)
        self.networks.actor.load_state_dict(actor)  # last: of weights that both share, the average is the actor's

    def close(self) -> None:
        """Close the environment; the networks stay usable."""
        self.env.close(raise_if_closed=False)  # torchrl's open when first used

    @property
    def folder(self) -> Path:
        """The run's folder; for a checkpoint outside of a run, the folder that holds it."""
        parent = self.path.resolve().parent
        return parent.parent if parent.name == "checkpoints" else parent

    def _restore(self, name: str, transform: Transform, state: Mapping[str, Tensor]) -> Iterator[str]:
        """Freeze a normalisation at its saved statistics; yields the differences in shape."""
        if is_own(transform):
            load_buffers(transform, state)
        if not isinstance(transform, ObservationNorm):
            return
        if not {"loc", "scale"} <= {key for key, value in state.items() if isinstance(value, Tensor)}:
            raise CheckpointError(
                f"{self.path} holds no statistics of {name}: without them the policy would see other observations "
                "than it was trained on. Choose another checkpoint."
            )
        shapes = {key: transform.parent.observation_spec_unbatched[key].shape for key in transform.in_keys}
        if isinstance(transform, RunningObservationNorm) and len(shapes) != 1:
            shapes = {" and ".join(shapes) or "observation": torch.Size([sum(s.numel() for s in shapes.values())])}
        for key, shape in shapes.items():
            if state["loc"].shape != shape:
                yield f"{name}.loc is {list(state['loc'].shape)}, and the environment's {key} is {list(shape)}"
        device = self.env.device or "cpu"
        transform.loc, transform.scale = state["loc"].to(device), state["scale"].to(device)
        if isinstance(transform, RunningObservationNorm):
            transform.collecting = False

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise whatever a config and a state that do not match lead to as an error that names the checkpoint."""
        try:
            yield
        except (CheckpointError, ConfigError, VideoError):
            raise
        except (Exception, MemoryError, RecursionError) as error:
            raise CheckpointError(f"{self.path} cannot be restored here: {error!r:.300}") from error

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            shown = "".join(f"\n  {difference}" for difference in differences)
            raise CheckpointError(f"{self.path} does not fit its environment as installed here:{shown}")

    @torch.no_grad()
    @float32_by_default()
    def rollout(self, steps: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What the agent saw in its environment and did, acting as in evaluation.

        Args:
            steps: of each simulator.
            seed: seed of their episodes.

        Returns:
            The raw entries of the observations by their names, ``[steps, num_envs, *entry]``, with action masks the
            ``action_mask`` ``[steps, num_envs, values]``; the actions taken on them ``[steps, num_envs, *action]``; and
            whether an episode ended with them ``[steps, num_envs]``.
        """
        recorder = _Recorder([*entries(self.env.base_env), ACTION_MASK])
        env = TransformedEnv(self.env.base_env, Compose(recorder, *cloned(self.env)))
        env.set_seed(seed)
        device = next(self.networks.actor.parameters()).device
        seen: list[dict[str, Tensor]] = []
        rows: list[tuple[Tensor, ...]] = []
        tensordict = env.reset()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            for _ in range(steps):
                seen.append(recorder.seen)
                stepped, tensordict = env.step_and_maybe_reset(
                    self.networks.actor(tensordict.to(device)).to(env.device)
                )
                action = self._taken(recorder.action)
                rows.append((action, stepped["next", "done"][:, 0]))
        actions, ends = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return {key: torch.stack([row[key] for row in seen]) for key in seen[0]}, actions, ends

    def _taken(self, action: Tensor) -> Tensor:
        """What the simulators were given in the newest step, for actions out of the transforms."""
        base = self.env.base_env
        if not isinstance(base, ArrayEnv):
            projected: Tensor = base.action_spec.project(action)
            return projected
        own = in_own_form(base.own_action_space)
        return torch.from_numpy(np.stack([own(row) for row in base.arrays.action]))

    def unlike(self, actions: Tensor, expected: Tensor) -> str | None:
        """Describe how actions ``[count, *action]`` differ from the expected ones; None if only by rounding."""
        spec = self.env.base_env.action_spec_unbatched
        actions, expected = (a.cpu().reshape(len(a), -1) for a in (actions, expected))
        if isinstance(spec, Categorical):
            different = (actions != expected).sum().item()
            return f"{different:,} of {expected.numel():,} actions differ" if different else None
        bounds = (spec.space.low, spec.space.high) if isinstance(spec, Bounded) else (-0.5, 0.5)
        span = torch.as_tensor(bounds[1]).double() - torch.as_tensor(bounds[0]).double()
        span = torch.where(span > 0, span, 1.0)  # 0 of an action that is locked
        # Without bounds, or within bounds that are none in practice, rounding is relative to the action itself.
        size = expected.double().abs().clamp_min(1.0)
        span = torch.where(
            (span > _BOUNDLESS) | (not isinstance(spec, Bounded)), size, span.reshape(-1).expand_as(size)
        )
        largest = ((actions.double() - expected.double()) / span).abs().max().item()
        if largest <= ROUNDING:  # false for NaN
            return None
        return f"over {len(expected):,} observations an action differs by up to {largest:.3g} of its range"


class _Recorder(Transform):
    """Records the latest observations and actions of the bare simulators."""

    seen: dict[str, Tensor]
    action: Tensor

    def __init__(self, keys: list[str]) -> None:
        super().__init__(in_keys=[], out_keys=[])
        self.keys = keys

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.seen = next_tensordict.select(*self.keys, strict=False).clone().to_dict()
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.action = tensordict["action"].clone()
        return tensordict


def _differences(name: str, needed: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Iterator[str]:
    for key in sorted(needed.keys() | saved.keys()):
        ours, theirs = (list(state[key].shape) if key in state else "nothing" for state in (needed, saved))
        if ours != theirs:
            yield f"{name}.{key} is {theirs}, and {ours} is needed"
