"""A trained policy outside its environment, from raw observations to the environment's actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs import Compose, EnvBase, ObservationNorm, Transform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from rlexp.agent.agent import Agent
from rlexp.envs.actions import ACTION_MASK, first_action
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.entries import OBSERVATION
from rlexp.envs.torchrl import entries
from rlexp.errors import RlexpError
from rlexp.policies.recurrent import CARRIED, STATE, recurrent_network
from rlexp.policies.spaces import choices
from rlexp.seeding import unmoved_generators

_FLATTEN = (
    ". Flatten a Dict, Tuple or Discrete observation first: gymnasium.spaces.flatten(observation_space, observation)"
)

Array = TypeVar("Array", Tensor, npt.NDArray[Any])


class UnfaithfulPolicyError(RlexpError):
    """A policy would act differently outside its environment; the message gives the reason."""


class Policy(nn.Module):
    """The deterministic policy of an agent, from raw observations to the environment's actions.

    Includes the normalisation, with its saved statistics, and the other transforms of observations and actions. A
    recurrent policy carries its state from call to call until `reset`, or lets its caller carry it (`step`). A policy
    that was trained with action masks takes them too. Transforms that need more than the current observation, such
    as frame stacking, are refused. The caller repeats each action for ``env.frame_skip`` frames.

    Args:
        agent: provides the actor, the statistics and the transforms.

    Raises:
        UnfaithfulPolicyError: a transform needs more than the observation, or the policy's actions differ from those
            of the agent in its environment.
    """

    low: Tensor | None
    high: Tensor | None
    first_action: Tensor | None
    _recurrent_state: Tensor | None = None

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.actor = agent.networks.actor
        self._set_action_space(agent.env.base_env)
        network = recurrent_network(self.actor)
        self.recurrent = network is not None
        self._critic_state_size = 0 if network is None else network.state_size - network.core.state_size
        self.state_size = 0 if network is None else network.core.state_size
        self.masked = ACTION_MASK in self.actor.in_keys
        self.read = [key for key in self.actor.in_keys if key not in (*CARRIED, ACTION_MASK)]
        before, needed = _feeding(agent.env.transform, set(self.read))
        own = entries(agent.env.base_env)
        if not needed <= own.keys():
            reason = f"its transforms read {', '.join(sorted(needed - own.keys()))} besides the observation"
            raise UnfaithfulPolicyError(f"{agent.path} cannot act on observations alone: {reason}.")
        self.shapes = {key: own[key].shape for key in sorted(needed)}
        self.dtypes = {key: own[key].dtype for key in self.shapes}
        self.has_entries = list(own) != [OBSERVATION]
        after = [t for t in reversed(list(agent.env.transform)) if "action" in t.out_keys_inv]
        self.before, self.after = nn.ModuleList(map(_fixed, before)), nn.ModuleList(map(_fixed, after))
        self.eval().requires_grad_(False)
        self.to(next(self.actor.parameters()).device)
        seen, actions, ends = agent.rollout(8)
        try:
            chosen = []
            for t, end in enumerate(ends):
                chosen.append(self(**self.arguments({key: rows[t] for key, rows in seen.items()})))
                self.reset(end)
            difference = agent.unlike(torch.cat(chosen), actions.flatten(0, 1))
        except Exception as error:
            difference = f"{type(error).__name__}: {error}"
        self.reset()
        if difference is not None:
            raise UnfaithfulPolicyError(
                f"{agent.path} does not act on observations alone as it does in its environment: {difference}. "
                "One of env.transforms depends on earlier steps or on more than the observation."
            )

    def reset(self, ended: Tensor | npt.NDArray[Any] | Sequence[Any] | None = None) -> None:
        """Reset the recurrent state, where an episode ends; without effect on feed-forward policies.

        Args:
            ended: mask ``[...]`` of the episodes that ended, flags or 0 and 1, over the observations' leading
                dimensions: a tensor, an array or a list. None resets all, and the next observations may have other
                leading dimensions.
        """
        if ended is None or self._recurrent_state is None:
            self._recurrent_state = None
        else:
            mask = torch.as_tensor(ended).to(self._recurrent_state.device, torch.bool)[..., None]
            self._recurrent_state = self._recurrent_state.masked_fill(mask, 0)

    def arguments(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, from entries by their names as `Agent.rollout` gives them."""
        observation = {key: seen[key] for key in self.shapes} if self.has_entries else seen[OBSERVATION]
        return {OBSERVATION: observation, **({ACTION_MASK: seen[ACTION_MASK]} if self.masked else {})}

    def forward(self, observation: Array | Mapping[str, Array], action_mask: Array | None = None) -> Array:
        """Act.

        Args:
            observation: as the simulator returns it, ``[..., *observation]``; a tensor or a NumPy array. With several
                entries, a dictionary of at least those that the actor reads, without ``action_mask``.
            action_mask: what actions are allowed ``[..., values]``, flags or 0 and 1; for a policy that reads masks.

        Returns:
            Actions ``[..., *action]`` in the environment's own action space: an array for an array (a NumPy scalar if
            it has no dimensions, which every environment takes), a tensor on the policy's device for a tensor.

        Raises:
            ValueError: the observation does not have the environment's entries and shapes, or other numbers where it
                has whole ones, or, for a recurrent policy, not the leading dimensions of the one before it; there is no
                mask, or one that does not fit or allows nothing.
        """
        given = self._entries(observation)
        arrays = all(isinstance(entry, np.ndarray) for entry in given.values())
        action, state = self._step(given, self._recurrent_state, action_mask)
        if self.recurrent:
            self._recurrent_state = state
        out: Any = action.numpy(force=True)[()] if arrays else action  # [()] makes a number of no dimensions
        return cast("Array", out)

    def step(
        self,
        observation: Array | Mapping[str, Array],
        recurrent_state: Tensor | npt.NDArray[Any] | Sequence[Any] | None = None,
        action_mask: Array | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Act from a recurrent state, and remember nothing.

        Args:
            observation: as in `forward`, ``[..., *observation]``.
            recurrent_state: before the step ``[..., state_size]``, a tensor, an array or a list; None, like zeros,
                where episodes begin.
            action_mask: as in `forward`.

        Returns:
            Actions ``[..., *action]``, and the recurrent state after the step ``[..., state_size]``, without columns
            for a feed-forward policy; both on the policy's device.

        Raises:
            ValueError: as in `forward`.
        """
        return self._step(self._entries(observation), recurrent_state, action_mask)

    def inputs(self, observation: Array | Mapping[str, Array], action_mask: Array | None = None) -> TensorDictBase:
        """What the actor reads besides its recurrent state, on its device.

        Args:
            observation: as in `forward`, ``[..., *observation]``.
            action_mask: as in `forward`.

        Returns:
            Entries after the transforms ``[..., *entry]``, without a batch size.

        Raises:
            ValueError: as in `forward`.
        """
        return self._inputs(self._entries(observation), action_mask)[0]

    def _inputs(self, found: Mapping[str, Any], action_mask: Any) -> tuple[TensorDictBase, torch.Size]:
        """`inputs`, of entries that were checked, and their leading dimensions."""
        given = {key: torch.as_tensor(entry) for key, entry in found.items()}
        weights = next(self.actor.parameters())
        first, shape = next(iter(self.shapes.items()))
        batch: torch.Size = torch.Size(given[first].shape[: given[first].dim() - len(shape)])
        tensordict: TensorDictBase = TensorDict({k: self._typed(k, x).to(weights.device) for k, x in given.items()})
        if self.masked or action_mask is not None:
            mask = action_mask if action_mask is None else torch.as_tensor(action_mask)
            tensordict[ACTION_MASK] = self._mask(mask, batch).to(weights.device)
        for transform in self.before:
            tensordict = cast("Transform", transform)._call(tensordict)
        for key in self.read:
            if tensordict[key].is_floating_point():
                tensordict[key] = tensordict[key].to(weights.dtype)
        return tensordict, batch

    def _step(self, given: Mapping[str, Any], before: Any, action_mask: Any) -> tuple[Tensor, Tensor]:
        """`step`, for entries that were checked."""
        tensordict, batch = self._inputs(given, action_mask)
        weights = next(self.actor.parameters())
        state = torch.zeros(*batch, self.state_size) if before is None else torch.as_tensor(before)
        if state.shape[:-1] != batch:
            shapes = f"observations of shape {list(batch)} follow a state of {list(state.shape[:-1])}"
            raise ValueError(f"{shapes}; call reset() first.")
        state = state.to(weights.device, weights.dtype)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            if self.recurrent:
                tensordict, state = self._recurrent_step(tensordict, state, batch)
            else:
                tensordict = self.actor(tensordict)
        for transform in self.after:
            tensordict = cast("Transform", transform)._inv_call(tensordict)
        action = tensordict["action"]
        if self.low is not None:
            action = action.to(self.action_dtype).clamp(self.low, self.high)  # as the environment does
        action = action.reshape((*batch, *self.action_shape))
        if self.first_action is not None:
            action = action + self.first_action
        return action.to(self.action_dtype), state

    def _typed(self, key: str, entry: Tensor) -> Tensor:
        """An entry in the type that the environment gives, unless that would change whole numbers."""
        dtype = self.dtypes[key]
        typed = entry.to(dtype)
        if dtype.is_floating_point or entry.dtype == dtype:
            return typed
        fits = not (entry.is_floating_point() or entry.is_complex())
        if fits and not torch.compiler.is_compiling():  # a graph cannot raise
            fits = bool((typed.long() == entry.long()).all())
        if not fits:
            found, read = (str(kind).removeprefix("torch.") for kind in (entry.dtype, dtype))
            raise ValueError(f"the {_named(key)} is {found}, and this policy reads {read}, as the simulator gives it")
        return typed

    def _mask(self, mask: Any, batch: torch.Size) -> Tensor:
        """An action mask as the actor reads it ``[..., values]``."""
        if not self.masked:
            raise ValueError("this policy was trained without action masks, and takes none")
        if not isinstance(mask, Tensor) or mask.shape != (*batch, self.values):
            found = "nothing" if mask is None else list(getattr(mask, "shape", ())) or type(mask).__name__
            raise ValueError(f"the action_mask is {found}; this policy reads {[*batch, self.values]}")
        allowed = mask.bool()
        if not torch.compiler.is_compiling():  # a graph cannot raise
            parts = allowed.split(self.choices, -1)
            if not (torch.stack([part.any(-1) for part in parts]).all() and (allowed == mask).all()):
                raise ValueError("the action_mask allows no value of an action, or is not made of flags or 0 and 1")
        return allowed

    def _set_action_space(self, env: EnvBase) -> None:
        """Remember what the environment's own actions are: their type, shape, bounds and first numbers."""
        spec = env.action_spec_unbatched
        self.choices = choices(spec)
        self.values = sum(self.choices)
        self.action_dtype, self.action_shape = spec.dtype, spec.shape
        low = high = first = None
        if isinstance(env, ArrayEnv):
            own = env.own_action_space
            self.action_dtype, self.action_shape = _dtype(own), torch.Size(own.shape or ())
            if (numbers := first_action(own)) is not None and numbers.any():
                first = torch.as_tensor(numbers)
            if env.bounds is not None:
                low, high = map(torch.as_tensor, env.bounds)
        elif isinstance(spec, Bounded):
            low, high = spec.space.low, spec.space.high
        for name, value in (("low", low), ("high", high), ("first_action", first)):
            if value is None:  # torch.export miscounts buffers that are None
                setattr(self, name, None)
            else:
                self.register_buffer(name, value, persistent=False)

    def _entries(self, observation: Any) -> dict[str, Any]:
        """The entries that are read, each checked."""
        if self.has_entries:
            if not isinstance(observation, Mapping) or not self.shapes.keys() <= observation.keys():
                found = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
                raise ValueError(f"the observation is {found}; this policy reads the entries {', '.join(self.shapes)}.")
            given = {key: observation[key] for key in self.shapes}
        else:
            given = {OBSERVATION: observation}
        for key, entry in given.items():
            if not isinstance(entry, Tensor | np.ndarray):
                kind = type(entry).__name__
                raise ValueError(f"the {_named(key)} is a {kind}; this policy reads arrays and tensors{_FLATTEN}")
            shape = self.shapes[key]
            if tuple(entry.shape[max(0, entry.ndim - len(shape)) :]) != tuple(shape):
                read = f"[..., {str(list(shape))[1:]}"
                raise ValueError(f"the {_named(key)} has shape {list(entry.shape)}; this policy reads {read}{_FLATTEN}")
        return given

    def _recurrent_step(
        self, tensordict: TensorDictBase, state: Tensor, batch: torch.Size
    ) -> tuple[TensorDictBase, Tensor]:
        """Act on one step ``[*batch]`` from a recurrent state, and the state after it."""
        # Never through batch.numel(), which would fix the batch size of an exported graph.
        state = state.reshape(-1, self.state_size)
        steps = TensorDict(
            {key: tensordict[key].reshape(-1, *tensordict[key].shape[len(batch) :]) for key in self.read}
        )
        steps["is_init"] = torch.zeros_like(state[:, :1], dtype=torch.bool)
        # The actor advances the critic's state too, which nothing here depends on.
        steps[STATE] = nn.functional.pad(state, (0, self._critic_state_size))
        if self.masked:
            steps[ACTION_MASK] = tensordict[ACTION_MASK].reshape(-1, self.values)
        acted = self.actor(steps)
        after = acted["next", STATE][:, : self.state_size].reshape((*batch, self.state_size))
        return TensorDict({"action": acted["action"].reshape((*batch, *acted["action"].shape[1:]))}), after


def load_policy(
    path: Path | str,
    device: torch.device | str = "cpu",
    trust: Collection[str] = (),
    secrets: Mapping[str, Any] | None = None,
) -> Policy:
    """The policy of a checkpoint, of ``RUN_DIR/checkpoints/best``, or of the latest one in a run's folder.

    The global random generators are where they were afterwards.

    Args:
        path: a checkpoint, or a run's folder.
        device: where the networks go.
        trust: packages that the checkpoint's config may import beside what rlexp itself builds (docs/security.md).
        secrets: values of the settings that were hidden when it was saved, by their full paths
            (``{"env.kwargs.api_key": ...}``).

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit the environment as installed here.
        ConfigError: the environment it was trained in cannot be built here, or needs code that is not trusted.
        UnfaithfulPolicyError: it cannot act on observations alone.
    """
    started = torch.cuda.is_initialized()  # to read the state of a GPU's generator would start CUDA
    with unmoved_generators(devices=started), closing(Agent(path, device, trust, secrets=secrets)) as agent:
        return Policy(agent)


def _feeding(transforms: Compose, keys: set[str]) -> tuple[list[Transform], set[str]]:
    """The transforms that ``keys`` depend on, in order, and the simulator's keys that they read."""
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


def _dtype(space: spaces.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty((), space.dtype)).dtype


def _named(key: str) -> str:
    return OBSERVATION if key == OBSERVATION else f"observation {key!r}"


def _fixed(transform: Transform) -> Transform:
    """A copy for use outside an environment."""
    copy: Transform = transform.clone()
    copy.set_missing_tolerance(True)  # there are observations and actions here, and no rewards
    if isinstance(copy, ObservationNorm):
        # A plain bool, for a branch on a tensor cannot be exported.
        copy.standard_normal = bool(copy._buffers.pop("standard_normal"))
    return copy
