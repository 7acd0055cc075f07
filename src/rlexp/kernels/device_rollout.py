"""Batches as a loop over tensors that stay on the device. Reference: ``torchrl.collectors.Collector``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import (
    DoubleToFloat,
    EnvBase,
    ObservationNorm,
    ParallelEnv,
    RewardClipping,
    RewardScaling,
    RewardSum,
    SerialEnv,
    SignTransform,
    StepCounter,
    Transform,
    TransformedEnv,
)

from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.normalization import RunningObservationNorm
from rlexp.envs.raw_observations import RAW, PutRaw, TakeRaw
from rlexp.kernels.collector import BatchCollector
from rlexp.kernels.device_acting import device_acting
from rlexp.kernels.scan import discounted_sums
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.policies.recurrent import carries, carries_state

Entries: TypeAlias = dict[str, Tensor]

_FLAGS = ("done", "terminated", "truncated")
_ELEMENTWISE = (DoubleToFloat, ObservationNorm, RewardClipping, RewardScaling, RunningObservationNorm, SignTransform)


class DeviceCollector(BatchCollector):
    """Steps a batch of simulators and the policy in turn, and hands out the batches that torchrl's ``Collector`` would.

    Within a batch nothing waits for the device. So every step resets the simulators by a mask, whether or not one of
    them is done, and the environment must take a mask that chooses none. Of the transforms only what the policy sees is
    computed at each step; the rest is computed for a whole batch at once.

    Args:
        env: a torchrl environment that is a batch by itself and resets single rows, with transforms.
        actor: the policy.
        steps_per_batch: agent steps of one batch, all simulators together.
        device: where the environment, the actor and the batches are.

    Shapes:
        batches ``[num_envs, steps]``; entries as in the environment's specs, and ``("collector", "traj_ids")``.

    Raises:
        UnsupportedError: the environment, a transform or the actor needs torchrl's own collector.
    """

    def __init__(
        self, env: TransformedEnv, actor: TensorDictModuleBase, steps_per_batch: int, device: torch.device
    ) -> None:
        super().__init__(env, actor, steps_per_batch, device)
        self._simulators: EnvBase = env.base_env
        _check(self._simulators, device)
        self._transforms = DeviceTransforms(env)
        (num_envs,) = env.batch_size
        self._act = device_acting(actor, num_envs, device, self._transforms.observed)
        # torchrl's environments that can be set to a state ask whether they are to be.
        self._reset_arguments = {"set_state": False} if self._simulators._supports_set_state else {}
        self._buffers = self._allocated()
        self._rows = {key: buffer.unbind(0) for key, buffer in self._buffers.items()}
        reset = self._simulators.reset()
        self._raw: Entries = {key: reset[key] for key in self._transforms.observed}
        self._observation = self._transforms.observations(self._raw)
        column = torch.zeros(num_envs, 1, dtype=torch.int64, device=device)
        self._carried = {
            "step_count": column,
            "episode_reward": torch.zeros_like(column, dtype=self._transforms.reward_dtype),
            "traj_id": torch.arange(num_envs, device=device),
            "next_traj_id": torch.tensor(num_envs, device=device),
        }

    @torch.no_grad()
    def rollout(self) -> TensorDictBase:
        """The next batch ``[num_envs, steps]``, from the policy as it is now."""
        simulators, transforms, act, rows = self._simulators, self._transforms, self._act, self._rows
        count = self._carried["step_count"]
        standing = dict.fromkeys(transforms.simulator_flags, torch.zeros_like(count, dtype=torch.bool))
        act.begin()
        for t in range(self._steps):
            for key, value in self._observation.items():
                rows["before", key][t].copy_(value)
            for key in transforms.kept:
                rows["raw before", key][t].copy_(self._raw[key])
            action = act(self._observation)
            rows["action"][t].copy_(action)
            rows["step_count"][t].copy_(count)
            count = count + 1
            given = {**self._raw, **standing, "action": action.to(transforms.action_dtype)}
            stepped = simulators._step(self._tensordict(given))
            flags = transforms.ends(stepped, count)
            done = flags["done"]
            reset = simulators._reset(self._tensordict({"_reset": done}), **self._reset_arguments)
            for key in transforms.observed:
                after = stepped.get(key)
                rows["raw", key][t].copy_(after)
                self._raw[key] = _chosen(done, reset.get(key, None), after)
            rows["reward"][t].copy_(stepped.get("reward"))
            for name, flag in flags.items():
                rows[name][t].copy_(flag)
            self._observation = transforms.observations(self._raw)
            count = count.masked_fill(done, 0)
            act.restart(done)
        self._carried["step_count"] = count
        batch = self._batch()
        return batch.update(act.outputs(batch))

    def _batch(self) -> TensorDict:
        """The buffers as a batch of its own ``[num_envs, steps]``, with what follows from them."""
        transforms, buffers, carried = self._transforms, self._buffers, self._carried
        flags = {name: buffers[name] for name in transforms.flags}
        reward, summed = transforms.rewards(buffers["reward"])
        # No simulator stands at an end when the policy acts: those that do are reset first.
        before: Entries = {name: torch.zeros_like(flag) for name, flag in flags.items()}
        before |= {key: buffers["before", key] for key in transforms.observed}
        following: Entries = {"reward": reward, **flags}
        raw: Entries = {key: buffers["raw", key] for key in transforms.observed}
        following |= transforms.observations(raw, collected=True)
        if transforms.counts_steps:
            before["step_count"], following["step_count"] = buffers["step_count"], buffers["step_count"] + 1
        if transforms.sums_rewards:
            before["episode_reward"], following["episode_reward"], carried["episode_reward"] = episode_returns(
                summed, flags["done"], carried["episode_reward"]
            )
        traj_ids, carried["traj_id"], carried["next_traj_id"] = trajectory_ids(
            flags["done"][..., 0], carried["traj_id"], carried["next_traj_id"]
        )
        kept = kept_after = {}
        if transforms.kept:
            kept = {RAW: {key: buffers["raw before", key] for key in transforms.kept}}
            kept_after = {RAW: {key: raw[key] for key in transforms.kept}}
        entries = {
            **before,
            **kept,
            "action": buffers["action"],
            "next": {**following, **kept_after},
            "collector": {"traj_ids": traj_ids},
        }
        return TensorDict(
            _per_env(entries), batch_size=(*self.env.batch_size, self._steps), device=self.device, names=(None, "time")
        )

    def _allocated(self) -> dict[Any, Tensor]:
        """Buffers ``[steps, num_envs, ...]`` of what a step gives."""
        env, simulators, observed = self.env, self._simulators, self._transforms.observed
        (num_envs,) = env.batch_size

        def buffer(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            return torch.empty(self._steps, *shape, dtype=dtype, device=self.device)

        specs: dict[Any, Any] = {("before", key): env.observation_spec[key] for key in observed}
        specs |= {("raw", key): simulators.observation_spec[key] for key in observed}
        specs |= {("raw before", key): simulators.observation_spec[key] for key in self._transforms.kept}
        specs |= {"action": env.action_spec, "reward": simulators.reward_spec}
        found = {key: buffer(spec.shape, spec.dtype) for key, spec in specs.items()}
        column = torch.Size([num_envs, 1])
        found |= {name: buffer(column, torch.bool) for name in self._transforms.flags}
        return found | {"step_count": buffer(column, torch.int64)}

    def _tensordict(self, entries: Entries) -> TensorDict:
        # As torchrl's environments make theirs; the public constructor takes five times as long.
        return TensorDict._new_unsafe(entries, batch_size=self.env.batch_size, device=self.device)

    def state_dict(self) -> OrderedDict[str, Any]:
        """What the next batch begins with, besides the networks', transforms' and simulators' own state.

        The observation is the transformed one that the policy acts on, normalised as the batch before it was.
        """
        parts: dict[str, Entries] = {
            "raw": self._raw,
            "observation": self._observation,
            "carried": self._carried,
        }
        plain = {name: {key: value.clone() for key, value in found.items()} for name, found in parts.items()}
        return OrderedDict(plain, recurrent=self._act.state())

    def load_state_dict(self, state_dict: OrderedDict[str, Any]) -> None:
        """Continue from a `state_dict`; the simulators' state must be that of the same moment."""
        self._raw, self._observation, self._carried = (
            {key: state_dict[name][key].to(value) for key, value in present.items()}
            for name, present in (("raw", self._raw), ("observation", self._observation), ("carried", self._carried))
        )
        self._act.load_state(state_dict["recurrent"])


class DeviceTransforms:
    """What the transforms of an environment do, on tensors and no tensordict.

    Args:
        env: the transforms, and the simulators that they lie on.

    Attributes:
        observed: the entries of an observation.
        kept: those that batches hold as they are too (`PutRaw`).
        simulator_flags, flags: those of done, terminated and truncated that simulators give, and that batches hold.
        action_dtype: of the simulators' actions.
        reward_dtype: of rewards after the transforms.
        max_steps: the ``StepCounter``'s time limit; None where there is none.
        counts_steps: there is a ``StepCounter``.
        sums_rewards: there is a ``RewardSum``.

    Raises:
        UnsupportedError: a transform is not one of these, or observations or ends are nested.
    """

    def __init__(self, env: TransformedEnv) -> None:
        self._chain: list[tuple[Transform, dict[str, Callable[[Tensor], Tensor]]]] = []
        self.max_steps: int | None = None
        self.counts_steps = self.sums_rewards = False
        self.kept: list[str] = []
        for transform in env.transform:
            match transform:
                case StepCounter() if (
                    type(transform) is StepCounter
                    and transform.step_count_key == "step_count"
                    and transform.update_done
                ):
                    self.counts_steps, self.max_steps = True, transform.max_steps
                case RewardSum() if (
                    type(transform) is RewardSum
                    and transform.in_keys == ["reward"]
                    and transform.out_keys == ["episode_reward"]
                ):
                    self.sums_rewards = True
                    self._chain.append((transform, {}))
                case TakeRaw():
                    self.kept = list(transform.in_keys)
                case PutRaw():
                    pass
                case _ if carries(transform) and carries_state(env):
                    pass  # a recurrent actor writes their entries itself
                case ObservationNorm() if _in_place(transform) and not transform.in_keys_inv:
                    self._chain.append((transform, {key: _normalizer(transform, key) for key in transform.in_keys}))
                case _ if _in_place(transform) and not isinstance(transform, ObservationNorm):
                    self._chain.append((transform, dict.fromkeys(transform.in_keys, transform._apply_transform)))
                case _:
                    raise UnsupportedError(f"{type(transform).__name__} with these settings has no kernel")
        self._simulators = simulators = env.base_env
        self.observed: list[str] = list(simulators.observation_spec.keys(True, True))
        self.simulator_flags = list(simulators.full_done_spec.keys(True, True))
        self.flags = list(env.full_done_spec.keys(True, True))
        if nested := [key for key in self.observed if not isinstance(key, str)]:
            raise UnsupportedError(f"the observation has nested entries, {nested}")
        if not {*self.simulator_flags, *self.flags} <= {*_FLAGS}:
            raise UnsupportedError(f"the environment ends by {self.flags}, and not by {', '.join(_FLAGS)} alone")
        self.action_dtype, self.reward_dtype = simulators.action_spec.dtype, env.reward_spec.dtype

    def observations(self, raw: Entries, *, collected: bool = False) -> Entries:
        """Observations ``[..., *observation]`` as the policy sees them, by today's statistics.

        Args:
            raw: as the simulators give them.
            collected: let the running statistics know them.
        """
        entries = dict(raw)
        for transform, functions in self._chain:
            if collected and isinstance(transform, RunningObservationNorm) and functions:
                transform.observe(transform.joined(entries).clone())
            for key in entries.keys() & functions.keys():
                entries[key] = functions[key](entries[key])
        return entries

    def rewards(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards ``[..., 1]`` after the transforms, and as they are where ``RewardSum`` adds them up."""
        reward = summed = raw
        for transform, functions in self._chain:
            if isinstance(transform, RewardSum):
                summed = reward
            elif "reward" in functions:
                reward = functions["reward"](reward.clone())
        return reward, summed.to(self.reward_dtype)

    def ends(self, stepped: TensorDictBase, step_count: Tensor) -> dict[str, Tensor]:
        """Which episodes end with a step ``[num_envs, 1]``, the time limit included."""
        flags = {name: stepped.get(name, None) for name in self.simulator_flags}
        if None in flags.values():
            self._simulators._complete_done(self._simulators.full_done_spec, stepped)
            flags = {name: stepped.get(name) for name in flags}
        flags = {name: flag.view_as(step_count) for name, flag in flags.items()}
        if self.max_steps is not None:
            over = step_count >= self.max_steps
            flags["truncated"] = flags["truncated"] | over if "truncated" in flags else over
            flags["done"] = flags["done"] | over
        return flags


def episode_returns(reward: Tensor, done: Tensor, carried: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of each episode so far, by a parallel scan.

    Args:
        reward: ``[steps, num_envs, 1]``.
        done: whether an episode ended with the step ``[steps, num_envs, 1]``.
        carried: the sums before the first step ``[num_envs, 1]``.

    Returns:
        The sums before and after each step ``[steps, num_envs, 1]``, and those that go on after the last
        ``[num_envs, 1]``.
    """
    alive = (~done).to(reward)
    # `discounted_sums` runs backward in time along the last dimension.
    terms = torch.cat([carried[None], reward]).movedim(0, -1)
    keeps = torch.cat([torch.zeros_like(alive[:1]), torch.ones_like(alive[:1]), alive[:-1]]).movedim(0, -1)
    after = discounted_sums(terms.flip(-1), keeps.flip(-1)).flip(-1).movedim(-1, 0)[1:]
    going_on = after * alive
    return torch.cat([carried[None], going_on[:-1]]), after, going_on[-1]


def trajectory_ids(done: Tensor, carried: Tensor, next_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number the episodes in the order in which they began.

    Args:
        done: whether an episode ended with the step ``[steps, num_envs]``.
        carried: the ids before the first step ``[num_envs]``.
        next_id: the first id that was not used, a number.

    Returns:
        The id of each step's episode ``[steps, num_envs]``, those that go on ``[num_envs]``, and the next unused id.
    """
    begun = done.flatten().cumsum(0).view_as(done)
    ids = torch.cat([carried[None], torch.where(done, next_id + begun - 1, 0)]).cummax(0).values
    return ids[:-1], ids[-1], next_id + begun[-1, -1]


def _in_place(transform: Transform) -> bool:
    """Whether a transform maps each number of its entries alone, in place."""
    return type(transform) in _ELEMENTWISE and transform.in_keys == transform.out_keys


def _normalizer(norm: ObservationNorm, key: str) -> Callable[[Tensor], Tensor]:
    """As ``norm`` does to an entry; it would ask at each call, and wait for the device, how it is defined."""
    divide = bool(norm.standard_normal)
    clip = norm.clip if isinstance(norm, RunningObservationNorm) else None

    def normalize(x: Tensor) -> Tensor:
        loc, scale = norm.loc, norm.scale
        if isinstance(norm, RunningObservationNorm):
            loc, scale = norm.parts(loc)[key], norm.parts(scale)[key]
        out: Tensor = (x - loc) / scale if divide else x * scale + loc
        return out if clip is None else out.clamp(-clip, clip).to(x.dtype)

    return normalize


def _check(env: EnvBase, device: torch.device) -> None:
    """Make sure that an environment is stepped on the device, and its rows one by one.

    Raises:
        UnsupportedError: it is not.
    """
    name = type(env).__name__
    if isinstance(env, ArrayEnv | SerialEnv | ParallelEnv):
        raise UnsupportedError(f"{name} steps its simulators one by one, and not in tensors")
    if not _same(own := env.device or device, device):
        raise UnsupportedError(f"the environment is on {own} and the policy on {device}")
    if list(env.state_spec.keys(True, True)):
        raise UnsupportedError(f"{name} keeps its state in the tensordict")
    if getattr(env, "_torchrl_native_autoreset", False):
        raise UnsupportedError(f"{name} resets itself: give it native_autoreset=false")


def _same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def _chosen(mask: Tensor, where: Tensor | None, otherwise: Tensor) -> Tensor:
    """Rows of ``where`` by a mask ``[num_envs, 1]``, and of ``otherwise``; without the first all of the second."""
    if where is None:
        return otherwise
    return torch.where(mask.view(-1, *[1] * (otherwise.dim() - 1)), where, otherwise)


def _per_env(entries: Mapping[Any, Any]) -> dict[Any, Any]:
    """From ``[steps, num_envs, ...]`` to tensors ``[num_envs, steps, ...]`` of their own."""
    return {
        key: _per_env(value)
        if isinstance(value, Mapping)
        else value.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        for key, value in entries.items()
    }
