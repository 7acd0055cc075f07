"""Batches as a loop over NumPy rows and one tensordict. Reference: ``torchrl.collectors.Collector``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import (
    DoubleToFloat,
    ObservationNorm,
    RewardClipping,
    RewardScaling,
    RewardSum,
    SignTransform,
    StepCounter,
    Transform,
    TransformedEnv,
)

from rlexp.distributed import ALONE, Group
from rlexp.envs.arrays import ArrayEnv
from rlexp.envs.entries import OBSERVATION, joined, split
from rlexp.envs.masks import CheckedActionMask
from rlexp.envs.normalization import RunningObservationNorm
from rlexp.envs.raw_observations import RAW, PutRaw, TakeRaw
from rlexp.kernels.acting import Array, acting
from rlexp.kernels.collector import BatchCollector
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.policies.recurrent import carries, carries_state


class RolloutCollector(BatchCollector):
    """Steps simulators and policy in turn, and hands out the batches that ``torchrl.collectors.Collector`` would.

    Of the transforms only what the policy sees is computed at each step; step counts, episode returns and trajectory
    ids are computed for a whole batch at once, and so are the log-probabilities, by the actor itself.

    Args:
        env: an `ArrayEnv` with transforms.
        actor: reads entries of the observation, writes ``action`` and its log-probability.
        steps_per_batch: agent steps of one batch, all simulators together.
        device: where the actor is and the batches go.
        group: the learners, of whose environments these are a share.

    Shapes:
        batches ``[num_envs, steps]``; entries as in the environment's specs, and ``("collector", "traj_ids")``.

    Raises:
        UnsupportedError: the environment, a transform or the actor needs torchrl's own collector.
        SimulatorError: from the iterator, a simulator in another process failed.
    """

    def __init__(
        self,
        env: TransformedEnv,
        actor: TensorDictModuleBase,
        steps_per_batch: int,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        super().__init__(env, actor, steps_per_batch, device)
        self._transforms = ArrayTransforms(env)
        self._simulators: ArrayEnv = env.base_env
        (num_envs,) = env.batch_size
        self._act = acting(actor, num_envs, self._transforms.entries, group=group)
        self._own_draws = group.own_draws  # simulators of one's own may draw from torch's generator
        with self._own_draws():
            self._simulators.reset_arrays(range(num_envs))
        self._observation = self._transforms.observation()(self._simulators.arrays.observation)
        self._step_count = np.zeros(num_envs, np.int64)
        self._episode_reward = np.zeros(num_envs, self._transforms.reward_dtype)
        self._traj_id, self._next_traj_id = np.arange(num_envs), num_envs

    @torch.no_grad()
    def rollout(self) -> TensorDictBase:
        """The next batch ``[num_envs, steps]``, from the policy as it is now."""
        simulators, arrays, act = self._simulators, self._simulators.arrays, self._act
        transform = self._transforms.observation()
        shape = (self._steps, len(self._observation))
        keeps_raw = self._transforms.keeps_raw
        seen = self._steps if self._transforms.observes or keeps_raw else 0
        raw = np.empty((seen, *arrays.observation.shape), arrays.observation.dtype)
        raw_before = np.empty_like(raw) if keeps_raw else None
        observation = np.empty((self._steps, *self._observation.shape), self._observation.dtype)
        after = np.empty_like(observation)
        action = np.empty((self._steps, *arrays.action.shape), self._transforms.action_dtype)
        flags = simulators.flags
        flag = {key: np.empty((self._steps, *rows.shape), np.bool_) for key, rows in flags.items()}
        flag_after = {key: np.empty_like(rows) for key, rows in flag.items()}
        raw_reward = np.empty(shape, arrays.reward.dtype)
        terminated, truncated, done = (np.empty(shape, np.bool_) for _ in range(3))

        act.begin(self._steps)
        current = self._observation
        for t in range(self._steps):
            observation[t] = current
            if raw_before is not None:
                raw_before[t] = arrays.observation
            for key, rows in flags.items():
                flag[key][t] = rows
            action[t] = act(current, arrays.action_mask)
            simulators.set_actions(action[t])
            with self._own_draws():
                simulators.step_arrays()
            if seen:
                raw[t] = arrays.observation
            raw_reward[t] = arrays.reward
            terminated[t], truncated[t] = arrays.terminated, arrays.truncated
            for key, rows in flags.items():
                flag_after[key][t] = rows
            after[t] = current = transform(arrays.observation)
            ended = np.flatnonzero(np.logical_or(terminated[t], truncated[t], out=done[t]))
            if len(ended):
                with self._own_draws():
                    simulators.reset_arrays(ended.tolist())
                current[ended] = transform(arrays.observation[ended])
                act.restart(ended)
        self._observation = current
        if seen:
            self._transforms.observe(raw)
        reward, summed = self._transforms.rewards(raw_reward)

        # No simulator stands at an end when the policy acts: those that do are reset first.
        before = dict.fromkeys(("done", "terminated", "truncated"), np.zeros(shape, np.bool_))
        following = {"reward": reward, "done": done, "terminated": terminated, "truncated": truncated}
        if self._transforms.counts_steps:
            before["step_count"], self._step_count = step_counts(done, self._step_count)
            following["step_count"] = before["step_count"] + 1
        if self._transforms.sums_rewards:
            before["episode_reward"], following["episode_reward"], self._episode_reward = episode_returns(
                summed, done, self._episode_reward
            )
        kept = {} if raw_before is None else {RAW: _entries(raw_before)}
        kept_after = {} if raw_before is None else {RAW: _entries(raw)}
        traj_ids, self._traj_id, self._next_traj_id = trajectory_ids(done, self._traj_id, self._next_traj_id)
        batch = TensorDict(
            {
                **_entries(observation),
                **kept,
                **{key: _per_env(rows) for key, rows in flag.items()},
                "action": _per_env(action),
                **{key: _per_env(value[..., None]) for key, value in before.items()},
                "next": {
                    **_entries(after),
                    **kept_after,
                    **{key: _per_env(rows) for key, rows in flag_after.items()},
                    **{key: _per_env(value[..., None]) for key, value in following.items()},
                },
                "collector": {"traj_ids": _per_env(traj_ids)},
            },
            batch_size=(shape[1], shape[0]),
            device=self.device,
            names=(None, "time"),
        )
        return batch.update(act.outputs(batch))

    def state_dict(self) -> OrderedDict[str, Any]:
        """What the next batch begins with, besides the networks', transforms' and simulators' own state.

        The observation is the transformed one that the policy acts on, normalised as the batch before it was.
        """
        entries = {name: torch.from_numpy(rows) for name, rows in split(self._observation).items()}
        return OrderedDict(
            observation=entries[OBSERVATION] if len(entries) == 1 else entries,
            step_count=torch.from_numpy(self._step_count.copy()),
            episode_reward=torch.from_numpy(self._episode_reward.copy()),
            traj_id=torch.from_numpy(self._traj_id.copy()),
            next_traj_id=self._next_traj_id,
            recurrent=self._act.state(),
        )

    def load_state_dict(self, state_dict: OrderedDict[str, Any]) -> None:
        """Continue from a `state_dict`; the simulators' state must be that of the same moment."""
        entries = state_dict["observation"]
        if isinstance(entries, Tensor):
            entries = {OBSERVATION: entries}
        self._observation = joined({name: rows.numpy().copy() for name, rows in entries.items()}, 1)
        self._step_count = state_dict["step_count"].numpy().copy()
        self._episode_reward = state_dict["episode_reward"].numpy().copy()
        self._traj_id = state_dict["traj_id"].numpy().copy()
        self._next_traj_id = state_dict["next_traj_id"]
        self._act.load_state(state_dict["recurrent"])


class ArrayTransforms:
    """What the transforms of an environment do, on arrays.

    Args:
        env: its base is an `ArrayEnv`.

    Attributes:
        entries: of an observation.
        action_dtype, reward_dtype: after the transforms.
        observes: there are running statistics, which are to know of raw observations.
        counts_steps: there is a ``StepCounter``.
        sums_rewards: there is a ``RewardSum``.
        keeps_raw: batches hold raw observations too (`PutRaw`).

    Raises:
        UnsupportedError: the environment has no array interface, or a transform is not one of these.
    """

    def __init__(self, env: TransformedEnv) -> None:
        if not isinstance(env.base_env, ArrayEnv):
            raise UnsupportedError(f"{type(env.base_env).__name__} has no array interface")
        self.entries = list(split(env.base_env.arrays.observation))
        self._chain: list[ObservationNorm | DoubleToFloat] = []
        self._rewards: list[Transform] = []
        self.counts_steps = self.sums_rewards = self.keeps_raw = False
        for transform in env.transform:
            match transform:
                case ObservationNorm() if (
                    type(transform) in (ObservationNorm, RunningObservationNorm)
                    and transform.in_keys == transform.out_keys
                    and set(transform.in_keys) <= set(self.entries)
                    and not transform.in_keys_inv
                ):
                    before = {key for earlier in self._chain for key in earlier.out_keys}
                    if isinstance(transform, RunningObservationNorm) and not before.isdisjoint(transform.in_keys):
                        raise UnsupportedError("running statistics of what other transforms changed have no kernel")
                    self._chain.append(transform)
                case DoubleToFloat() if type(transform) is DoubleToFloat:
                    self._chain.append(transform)
                    self._rewards.append(transform)
                case StepCounter() if (
                    type(transform) is StepCounter
                    and transform.max_steps is None
                    and transform.step_count_key == "step_count"
                ):
                    self.counts_steps = True
                case RewardSum() if (
                    type(transform) is RewardSum
                    and transform.in_keys == ["reward"]
                    and transform.out_keys == ["episode_reward"]
                ):
                    self.sums_rewards = True
                    self._rewards.append(transform)
                case RewardClipping() | RewardScaling() | SignTransform() if type(transform) in (
                    RewardClipping,
                    RewardScaling,
                    SignTransform,
                ) and transform.in_keys == transform.out_keys == ["reward"]:
                    self._rewards.append(transform)
                case TakeRaw() | PutRaw():
                    self.keeps_raw = True
                case CheckedActionMask():
                    pass  # the simulators check their masks themselves
                case _ if carries(transform) and carries_state(env):
                    pass  # a recurrent actor writes their entries itself
                case _:
                    raise UnsupportedError(f"the transform {type(transform).__name__} so configured has no kernel")
        self.observes = any(isinstance(t, RunningObservationNorm) and t.in_keys for t in self._chain)
        self.action_dtype = _numpy_dtype(env.action_spec.dtype)
        self.reward_dtype = _numpy_dtype(env.reward_spec.dtype)

    def observation(self) -> Callable[[Array], Array]:
        """From raw observations ``[n, *observation]`` to new arrays as the policy sees them, by today's statistics."""
        by_entry = {name: self._entry(name) for name in self.entries}
        if self.entries == [OBSERVATION]:
            return by_entry[OBSERVATION]
        return lambda raw: joined({name: apply(raw[name]) for name, apply in by_entry.items()}, 1)

    def _entry(self, name: str) -> Callable[[Array], Array]:
        """The same for one entry."""
        steps: list[Callable[[Array], Array]] = []
        for transform in self._chain:
            if isinstance(transform, DoubleToFloat):
                if name in transform.out_keys:
                    steps.append(lambda x: x.astype(np.float32))
            elif name in transform.in_keys:
                running = isinstance(transform, RunningObservationNorm)
                loc, scale = (
                    (transform.parts(statistic)[name] if running else statistic).numpy(force=True).copy()
                    for statistic in (transform.loc, transform.scale)
                )
                clip = transform.clip if running else None
                steps.append(_normalizer(loc, scale, clip, divide=transform.standard_normal))

        def apply(raw: Array) -> Array:
            out = raw
            for step in steps:
                out = step(out)
            return out.copy() if out is raw else out

        return apply

    def rewards(self, raw: Array) -> tuple[Array, Array]:
        """Rewards ``[steps, num_envs]`` after the transforms, and as they are where ``RewardSum`` adds them up."""
        reward = summed = torch.from_numpy(raw)[..., None]
        for transform in self._rewards:
            if isinstance(transform, RewardSum):
                summed = reward
            elif not isinstance(transform, DoubleToFloat):
                reward = transform._apply_transform(reward.clone())
            elif "reward" in transform.out_keys:
                reward = reward.float()
        return reward[..., 0].numpy(), summed[..., 0].numpy().astype(self.reward_dtype, copy=False)

    def observe(self, raw: Array) -> None:
        """Let the running statistics know what was stepped to: raw observations ``[steps, num_envs, *observation]``."""
        for transform in self._chain:
            if isinstance(transform, RunningObservationNorm) and transform.in_keys:
                rows = {name: torch.from_numpy(np.ascontiguousarray(raw[name] if raw.dtype.names else raw))
                        for name in transform.in_keys}  # fmt: skip
                transform.observe(transform.joined(rows))


def step_counts(done: Array, carried: Array) -> tuple[Array, Array]:
    """Steps made in each episode so far.

    Args:
        done: whether an episode ended with the step ``[steps, num_envs]``.
        carried: the counts before the first step ``[num_envs]``.

    Returns:
        The counts before each step ``[steps, num_envs]``, and after the last one ``[num_envs]``.
    """
    steps = np.arange(len(done) + 1)[:, None]
    ended = np.concatenate([np.zeros_like(done[:1]), done])
    since = steps - np.maximum.accumulate(np.where(ended, steps, 0))
    counts = since + np.where(np.logical_or.accumulate(ended), 0, carried)
    return counts[:-1], counts[-1]


def episode_returns(reward: Array, done: Array, carried: Array) -> tuple[Array, Array, Array]:
    """Rewards of each episode so far, added up in order and in the rewards' own type.

    Args:
        reward: ``[steps, num_envs]``.
        done: whether an episode ended with the step ``[steps, num_envs]``.
        carried: the sums before the first step ``[num_envs]``.

    Returns:
        The sums before and after each step ``[steps, num_envs]``, and those that go on after the last ``[num_envs]``.
    """
    steps, num_envs = reward.shape
    before, after = np.empty_like(reward), np.empty_like(reward)
    going_on = carried.copy()
    for i in range(num_envs):
        start = 0
        for stop in [*(np.flatnonzero(done[:, i]) + 1).tolist(), steps]:
            sums = np.add.accumulate(np.concatenate([going_on[i : i + 1], reward[start:stop, i]]))
            before[start:stop, i], after[start:stop, i] = sums[:-1], sums[1:]
            going_on[i] = 0 if stop > start and done[stop - 1, i] else sums[-1]
            start = stop
    return before, after, going_on


def trajectory_ids(done: Array, carried: Array, next_id: int) -> tuple[Array, Array, int]:
    """Number the episodes in the order in which they began.

    Args:
        done: whether an episode ended with the step ``[steps, num_envs]``.
        carried: the ids before the first step ``[num_envs]``.
        next_id: the first id that was not used.

    Returns:
        The id of each step's episode ``[steps, num_envs]``, those that go on ``[num_envs]``, and the next unused id.
    """
    new = np.where(done, next_id + np.cumsum(done).reshape(done.shape) - 1, 0)
    ids = np.maximum.accumulate(np.concatenate([carried[None], new]))
    return ids[:-1], ids[-1], next_id + int(done.sum())


def _normalizer(loc: Array, scale: Array, clip: float | None, *, divide: bool) -> Callable[[Array], Array]:
    def normalize(x: Array) -> Array:
        out = (x - loc) / scale if divide else x * scale + loc
        return out if clip is None else out.clip(-clip, clip, out=out).astype(x.dtype, copy=False)

    return normalize


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty((), dtype=dtype).numpy().dtype


def _entries(rows: Array) -> dict[str, Tensor]:
    """The entries of observations ``[steps, num_envs]``, each as `_per_env` has it."""
    if rows.dtype.names is None:
        return {OBSERVATION: _per_env(rows)}
    return {name: _per_env(rows[name]) for name in rows.dtype.names}


def _per_env(rows: Array) -> Tensor:
    """From ``[steps, num_envs, ...]`` to a tensor ``[num_envs, steps, ...]`` of its own."""
    return torch.from_numpy(np.ascontiguousarray(rows.swapaxes(0, 1)))
