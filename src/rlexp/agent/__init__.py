"""A trained agent, brought back from its checkpoint alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical
from torchrl.envs import Compose, ObservationNorm, Transform, TransformedEnv, VecNorm, VecNormV2
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp.agent.video import rendering
from rlexp.experiment import Experiment, read_config
from rlexp.normalization import RunningObservationNorm
from rlexp.policies import ActorCritic
from rlexp.policies.recurrent import STATE, RecurrentActor, carry_state, recurrent_network
from rlexp.runs import checkpoint
from rlexp.runs.checkpoint import Checkpoint, CheckpointError

ROUNDING = 1e-5  # share of an action's range: float32 sums in another order
Array = TypeVar("Array", Tensor, npt.NDArray[Any])


class UnfaithfulPolicyError(Exception):
    """A policy outside its environment would not act as it does inside; the message says why."""


class Agent:
    """The networks of a checkpoint and an environment with its normalisation statistics, frozen.

    Args:
        source: a checkpoint; its path, that of ``checkpoints/best``, or a run's folder for its latest one.
        device: where the networks go.
        trust: packages of your own that the checkpoint's config may import, beside rlexp, torch and the like.
        render: make simulators that can render pictures.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit the environment as it is here.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
        VideoError: pictures are asked of an environment that has none.
    """

    def __init__(
        self,
        source: Checkpoint | Path | str,
        device: torch.device | str = "cpu",
        trust: Sequence[str] = (),
        *,
        render: bool = False,
    ) -> None:
        saved = source if isinstance(source, Checkpoint) else checkpoint.load(Path(source))
        self.path = saved.path
        self.frames = saved.state.frames
        self.experiment: Experiment = read_config(saved.config, trust)
        spec = rendering(self.experiment.env) if render else self.experiment.env
        # As wide as in training, so that every number comes out of the same matrix products.
        self.env: TransformedEnv = spec.build(self.experiment.evaluation.episodes)
        differences: list[str] = []
        for index, (name, transform) in enumerate(zip(spec.transforms, self.env.transform, strict=True)):
            prefix = f"transforms.{index}."
            state = {k.removeprefix(prefix): v for k, v in saved.state.transforms.items() if k.startswith(prefix)}
            differences += self._restore(f"env.transforms.{name}", transform, state)
        self._refuse(differences)
        self.networks: ActorCritic = self.experiment.policy.build(self.env, torch.device(device))
        for name in ("actor", "critic"):
            network, state = getattr(self.networks, name), getattr(saved.state, name)
            differences += _differences(name, network.state_dict(), state)
        self._refuse(differences)
        carry_state(self.env, self.networks.actor)
        self.networks.actor.load_state_dict(saved.state.actor)
        self.networks.critic.load_state_dict(saved.state.critic)

    @property
    def folder(self) -> Path:
        """The run's folder; for a checkpoint that lies in none, the one that holds the checkpoint."""
        parent = self.path.resolve().parent
        return parent.parent if parent.name == "checkpoints" else parent

    def _restore(self, name: str, transform: Transform, state: Mapping[str, Tensor]) -> Iterator[str]:
        """Freeze a normalisation at its saved statistics; yields what does not fit."""
        if isinstance(transform, VecNorm | VecNormV2):
            raise CheckpointError(
                f"{self.path} was trained with {name}, torchrl's {type(transform).__name__}, whose statistics cannot "
                "be frozen here. Train with env/transforms=running (rlexp.normalization.RunningObservationNorm)."
            )
        if not isinstance(transform, ObservationNorm):
            return
        if not {"loc", "scale"} <= state.keys():
            raise CheckpointError(
                f"{self.path} holds no statistics of {name}: without them the policy would see other observations "
                "than it was trained on. Name another checkpoint."
            )
        for key in transform.in_keys:
            shape = transform.parent.observation_spec_unbatched[key].shape
            if state["loc"].shape != shape:
                yield f"{name}.loc is {list(state['loc'].shape)}, and the environment's {key} is {list(shape)}"
        transform.loc, transform.scale = state["loc"], state["scale"]
        if isinstance(transform, RunningObservationNorm):
            transform.collecting = False

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            shown = "".join(f"\n  {difference}" for difference in differences)
            raise CheckpointError(f"{self.path} does not fit its environment as it is here:{shown}")

    @torch.no_grad()
    def steps(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """What the simulators gave and what they did, while the agent acts as in evaluation.

        Args:
            count: steps, of all simulators together.
            seed: what their episodes derive from.

        Returns:
            Raw observations ``[count, *observation]`` and the actions taken on them, ``[count, *action]``.
        """
        observations, actions, _ = self.rollout(-(-count // self.env.batch_size[0]), seed)
        return observations.flatten(0, 1)[:count], actions.flatten(0, 1)[:count]

    @torch.no_grad()
    def rollout(self, steps: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Raw observations, actions and ends of episodes, each ``[steps, num_envs, ...]``; otherwise as `steps`."""
        witness = _Witness()
        env = TransformedEnv(self.env.base_env, Compose(witness, *(t.clone() for t in self.env.transform)))
        env.set_seed(seed)
        device = next(self.networks.actor.parameters()).device
        rows: list[tuple[Tensor, ...]] = []
        tensordict = env.reset()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            for _ in range(steps):
                observation = witness.observation
                stepped, tensordict = env.step_and_maybe_reset(
                    self.networks.actor(tensordict.to(device)).to(env.device)
                )
                action = self.env.base_env.action_spec.project(witness.action)  # as the simulators clip it
                rows.append((observation, action, stepped["next", "done"][:, 0]))
        observations, actions, ends = (torch.stack(entries) for entries in zip(*rows, strict=True))
        return observations, actions, ends

    def unlike(self, actions: Tensor, expected: Tensor) -> str | None:
        """How far actions ``[count, *action]`` are from those expected, in words; None where rounding explains it."""
        spec = self.env.base_env.action_spec_unbatched
        if isinstance(spec, Categorical):
            different = (actions.cpu() != expected.cpu()).sum().item()
            return f"of {expected.numel():,} actions {different:,} are others" if different else None
        bounds = (spec.space.low, spec.space.high) if isinstance(spec, Bounded) else (-0.5, 0.5)
        span = torch.as_tensor(bounds[1]).double() - torch.as_tensor(bounds[0]).double()
        largest = ((actions.cpu().double() - expected.cpu().double()) / span).abs().max().item()
        if largest <= ROUNDING:  # false for NaN
            return None
        return f"over {len(expected):,} observations an action differs by up to {largest:.3g} of its range"


class _Witness(Transform):
    """Keeps what goes in and out of the bare simulators."""

    observation: Tensor
    action: Tensor

    def __init__(self) -> None:
        super().__init__(in_keys=[], out_keys=[])

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.observation = next_tensordict["observation"].clone()
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.action = tensordict["action"].clone()
        return tensordict


class Policy(nn.Module):
    """From raw observations to the environment's actions, deterministic; all that the run put between is inside.

    Normalisation is at its saved statistics. A policy with a memory remembers the observations since `reset`. What no
    function of the observation can be, such as a transform that stacks frames, is refused. One thing stays with the
    caller: an action lasts ``env.frame_skip`` simulator frames.

    Args:
        agent: where the actor, the statistics and the other transforms come from.

    Raises:
        UnfaithfulPolicyError: a transform needs more than the observation, or the policy does not choose the actions
            that the agent chooses in its environment.
    """

    _remembered: Tensor | None = None

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.actor = agent.networks.actor
        spec = agent.env.base_env.observation_spec_unbatched["observation"]
        self.observation_shape, self.observation_dtype = spec.shape, spec.dtype
        self.action_spec = agent.env.base_env.action_spec_unbatched
        self.recurrent = recurrent_network(self.actor) is not None
        before, needed = _feeding(agent.env.transform, set(self.actor.in_keys) - {"is_init", STATE})
        if needed != {"observation"}:
            reason = f"its transforms read {', '.join(sorted(needed - {'observation'}))} besides the observation"
            raise UnfaithfulPolicyError(f"{agent.path} cannot act on observations alone: {reason}.")
        after = [t for t in reversed(list(agent.env.transform)) if "action" in t.out_keys_inv]
        self.before, self.after = nn.ModuleList(map(_fixed, before)), nn.ModuleList(map(_fixed, after))
        self.eval().requires_grad_(False)
        self.to(next(self.actor.parameters()).device)
        observations, actions, ends = agent.rollout(8)
        try:
            chosen = []
            for observation, end in zip(observations, ends, strict=True):
                chosen.append(self(observation))
                self.reset(end)
            difference = agent.unlike(torch.stack(chosen), actions)
        except Exception as error:
            difference = f"{type(error).__name__}: {error}"
        self.reset()
        if difference is not None:
            raise UnfaithfulPolicyError(
                f"{agent.path} does not act on observations alone as it does in its environment: {difference}. "
                "One of env.transforms remembers earlier steps, or is no function of the observation."
            )

    def reset(self, ended: Tensor | npt.NDArray[np.bool_] | None = None) -> None:
        """Forget what was seen; to be called where an episode ends. Policies without a memory have nothing to forget.

        Args:
            ended: which of the observations' leading entries begin a new episode ``[...]``; None means all, and that
                the next observations may have others.
        """
        if ended is None or self._remembered is None:
            self._remembered = None
        else:
            forget = torch.as_tensor(ended).to(self._remembered.device)[..., None]
            self._remembered = self._remembered.masked_fill(forget, 0)

    def forward(self, observation: Array) -> Array:
        """Act.

        Args:
            observation: as the simulator gives it, ``[..., *observation]``; a tensor or a NumPy array.

        Returns:
            Actions ``[..., *action]`` within the environment's bounds: an array for an array, and for a tensor a
            tensor on the policy's device.

        Raises:
            ValueError: the observation has another environment's shape, or, of a policy with a memory, leading
                dimensions other than the one before it.
        """
        if isinstance(observation, np.ndarray):
            return cast("Array", self(torch.from_numpy(observation)).numpy(force=True))
        if observation.shape[observation.dim() - len(self.observation_shape) :] != self.observation_shape:
            found, shape = list(observation.shape), list(self.observation_shape)
            raise ValueError(f"the observation has shape {found}; this policy reads [..., {str(shape)[1:]}")
        weights = next(self.actor.parameters())
        tensordict: TensorDictBase = TensorDict({"observation": observation.to(weights.device, self.observation_dtype)})
        for transform in self.before:
            tensordict = cast("Transform", transform)._call(tensordict)
        if tensordict["observation"].is_floating_point():
            tensordict["observation"] = tensordict["observation"].to(weights.dtype)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            tensordict = self._remembering(tensordict) if self.recurrent else self.actor(tensordict)
        for transform in self.after:
            tensordict = cast("Transform", transform)._inv_call(tensordict)
        action = tensordict["action"]
        if isinstance(self.action_spec, Bounded):
            low, high = (bound.to(action) for bound in (self.action_spec.space.low, self.action_spec.space.high))
            action = action.clamp(low, high)  # as the environment does
        return cast("Array", action)

    def _remembering(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on steps ``[...]`` and what was seen before them."""
        observation = tensordict["observation"]
        batch = observation.shape[: observation.dim() - len(self.observation_shape)]
        if self._remembered is None:
            size = cast("RecurrentActor", recurrent_network(self.actor)).state_size
            self._remembered = observation.new_zeros(*batch, size)
        if self._remembered.shape[:-1] != batch:
            found, before = list(batch), list(self._remembered.shape[:-1])
            raise ValueError(f"{found} observations follow {before} that are remembered; reset() forgets them.")
        rows = batch.numel()
        steps = TensorDict(
            {
                "observation": observation.reshape(rows, *self.observation_shape),
                "is_init": torch.zeros(rows, 1, dtype=torch.bool, device=observation.device),
                STATE: self._remembered.reshape(rows, -1),
            },
            [rows],
        )
        acted = self.actor(steps)
        self._remembered = acted["next", STATE].unflatten(0, batch) if batch else acted["next", STATE][0]
        return TensorDict({"action": acted["action"].unflatten(0, batch) if batch else acted["action"][0]})


def load_policy(path: Path | str, device: torch.device | str = "cpu", trust: Sequence[str] = ()) -> Policy:
    """The policy of a checkpoint, of ``RUN_DIR/checkpoints/best``, or of the latest one in a run's folder.

    Args:
        path: a checkpoint, or a run's folder.
        device: where the networks go.
        trust: packages of your own that the checkpoint's config may import, beside rlexp, torch and the like.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit the environment as it is here.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
        UnfaithfulPolicyError: it cannot act on observations alone.
    """
    return Policy(Agent(path, device, trust))


def _feeding(transforms: Compose, keys: set[str]) -> tuple[list[Transform], set[str]]:
    """The transforms that ``keys`` come out of, in order, and the keys of the simulator that go in."""
    chain: list[Transform] = []
    for transform in reversed(list(transforms)):
        made = keys & set(transform.out_keys)
        if made:
            pairwise = len(transform.in_keys) == len(transform.out_keys)
            pairs = zip(transform.in_keys, transform.out_keys, strict=True) if pairwise else ()
            read = {source for source, result in pairs if result in made} if pairwise else set(transform.in_keys)
            keys = (keys - made) | read
            chain.insert(0, transform)
    return chain, keys


def _fixed(transform: Transform) -> Transform:
    """A copy for use outside an environment."""
    copy: Transform = transform.clone()
    copy.set_missing_tolerance(True)  # there are observations and actions here, and no rewards
    if isinstance(copy, ObservationNorm):
        # A plain bool, for a branch on a tensor cannot be exported.
        copy.standard_normal = bool(copy._buffers.pop("standard_normal"))
    return copy


def _differences(name: str, needed: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> Iterator[str]:
    for key in sorted(needed.keys() | saved.keys()):
        ours, theirs = (list(state[key].shape) if key in state else "nothing" for state in (needed, saved))
        if ours != theirs:
            yield f"{name}.{key} is {theirs}, and {ours} is needed"
