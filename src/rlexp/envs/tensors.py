"""Simulators written in PyTorch: a whole batch of them in a few torch operations, wherever the tensors live."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from rlexp.envs.attributes import own_attributes, set_attributes
from rlexp.envs.errors import SimulatorError
from rlexp.envs.saving import State, StateUnavailableError


class TensorEnv(EnvBase):
    """``num_envs`` simulators with batch size ``[num_envs]``, whose states are the rows of one tensor.

    A subclass says, for all simulators at once, how episodes begin (`initial`), what a step does (`dynamics`) and what
    is observed (`observe`). Nothing here depends on a tensor's values, so that no call waits for the device, and a
    reset of no simulator changes nothing. A time limit is ``env.transforms.step_counter.max_steps``.

    What changes, such as the previous action, belongs in the states: a reset begins their rows anew, and leaves
    attributes as they are.

    The numbers from which an episode begins are a function of the seed, the simulator and how many episodes it has
    begun: the same on every device, whatever other simulators do.

    Args:
        num_envs: number of simulators.
        observation: spec of one simulator's observation.
        action: spec of one simulator's action.
        random_numbers: how many random numbers `initial` takes for an episode.
        device: where the tensors live.

    Shapes:
        observation ``[num_envs, *observation]``; action ``[num_envs, *action]``; reward ``[num_envs, 1]`` in float32;
        done, terminated ``[num_envs, 1]``.
    """

    def __init__(
        self,
        num_envs: int,
        observation: TensorSpec,
        action: TensorSpec,
        random_numbers: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        batch = self.batch_size
        self.observation_spec = Composite(observation=observation.expand(*batch, *observation.shape), shape=batch)
        self.action_spec = action.expand(*batch, *action.shape)
        self.reward_spec = Unbounded(shape=(*batch, 1))
        flag = Binary(1, shape=(*batch, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=batch)
        self._observed = (self.observation_spec["observation"].shape, observation.dtype)
        self._random_numbers = torch.arange(random_numbers, device=self.device)
        self._rows: dict[str, Tensor] = {}  # a module takes longer to set an attribute
        self._set_seed(0)

    def initial(self, uniform: Tensor) -> Tensor:
        """States ``[num_envs, *state]`` of new episodes, from numbers ``[num_envs, random_numbers]`` in [0, 1)."""
        raise NotImplementedError

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            state: ``[num_envs, *state]``; to write into it is an error.
            action: ``[num_envs, *action]``.

        Returns:
            The next states ``[num_envs, *state]``, rewards ``[num_envs]``, and whether each episode terminates
            ``[num_envs]``.
        """
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """Observations ``[num_envs, *observation]`` of states; unless overridden the states themselves, in float32."""
        return state.float()

    def simulator_state(self) -> State:
        """The simulators in the middle of their episodes, their random streams, the episodes begun, and own attributes.

        Raises:
            StateUnavailableError: an attribute of a subclass cannot be saved.
        """
        rows = {name: rows.clone() for name, rows in self._rows.items()}
        module = {name: tensor.detach().clone() for name, tensor in self._module_tensors().items()}
        return rows | {"attributes": own_attributes(self, _BASE), "module": module}

    def _module_tensors(self) -> dict[str, Tensor]:
        """Buffers and parameters, of modules within as well."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def load_simulator_state(self, state: State) -> None:
        """Go on exactly where `simulator_state` was called, perhaps on another device.

        Raises:
            StateUnavailableError: the state is that of other simulators.
        """
        if any(name not in state or state[name].shape != rows.shape for name, rows in self._rows.items()):
            raise StateUnavailableError(f"the state is not that of {self.batch_size[0]} {type(self).__name__}")
        tensors, saved = self._module_tensors(), state.get("module", {})
        if any(name not in tensors or tensors[name].shape != value.shape for name, value in saved.items()):
            raise StateUnavailableError(f"the state has buffers that {type(self).__name__} has not")
        with torch.no_grad():
            for name, value in saved.items():
                tensors[name].copy_(value)
        rows = {name: value for name, value in state.items() if name not in ("attributes", "module")}
        self._rows = {name: value.to(self.device, copy=True) for name, value in rows.items()}
        set_attributes(self, state.get("attributes", {}))

    def _fresh(self) -> Tensor:
        first = self._rows["episodes"] * len(self._random_numbers)
        fresh = self.initial(uniform(self._rows["streams"], first + self._random_numbers))
        if fresh.shape[:1] != self.batch_size:
            raise self._wrong("initial", f"states of shape {list(fresh.shape)}, and one of {self.batch_size[0]} rows")
        return fresh

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        fresh, episodes = self._fresh(), self._rows["episodes"]
        state = self._rows.get("state", fresh)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        chosen = torch.ones_like(episodes, dtype=torch.bool) if mask is None else mask.view_as(episodes)
        self._rows["state"] = torch.where(chosen.view(-1, *[1] * (state.dim() - 1)), fresh, state)
        self._rows["episodes"] = episodes + chosen
        going_on = torch.zeros_like(chosen)
        return self._entries(done=going_on, terminated=going_on.clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        before = self._rows["state"]
        version = None if before.is_inference() else before._version
        state, reward, terminated = self.dynamics(before, tensordict.get("action"))
        if version is not None and before._version != version:  # batches may hold it as an observation
            raise SimulatorError(f"{type(self).__name__}.dynamics writes into the states that it is given: clone them.")
        for what, found, shape in (
            ("states", state, before.shape),
            ("rewards", reward, self.batch_size),
            ("terminations", terminated, self.batch_size),
        ):
            if np.shape(found) != shape:  # it would broadcast
                raise self._wrong("dynamics", f"{what} of shape {list(np.shape(found))}, and {list(shape)}")
        if terminated.dtype != torch.bool:
            raise self._wrong("dynamics", f"terminations of type {terminated.dtype}, and torch.bool")
        self._rows["state"], terminated = state, terminated[:, None]
        return self._entries(reward=reward.float()[:, None], done=terminated.clone(), terminated=terminated)

    def _wrong(self, method: str, found: str) -> SimulatorError:
        return SimulatorError(f"{type(self).__name__}.{method} gives {found} is needed.")

    def _entries(self, **entries: Tensor) -> TensorDict:
        entries["observation"] = seen = self.observe(self._rows["state"])
        if (seen.shape, seen.dtype) != self._observed:
            shape, dtype = self._observed
            found = f"observations of shape {list(seen.shape)} and type {seen.dtype}"
            raise self._wrong("observe", f"{found}, and shape {list(shape)} and type {dtype}")
        return TensorDict._new_unsafe(entries, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            return
        streams = np.random.SeedSequence(seed).generate_state(self.batch_size[0], np.uint64).astype(np.int64)
        self._rows["streams"] = torch.from_numpy(streams)[:, None].to(self.device)
        self._rows["episodes"] = torch.zeros_like(self._rows["streams"])


# Of a subclass the others are its own; the last three are set from outside.
_BASE = {*vars(TensorEnv(1, Unbounded(1), Unbounded(1), 0)), "_inplace_update", "_step", "timeout"}


def _signed(number: int) -> int:
    return number - 2**64


def uniform(stream: Tensor, index: Tensor) -> Tensor:
    """Number ``index`` of each random stream: SplitMix64 (Steele, Lea and Flood 2014, figure 18).

    No generator keeps a state, so that any device gives any number of any stream, and the same one.

    Args:
        stream: seeds in int64.
        index: from 0 on, in int64; broadcasts with ``stream``.

    Returns:
        Numbers in [0, 1), in float64.
    """
    z = stream + (index + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    numbers: Tensor = _shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53
    return numbers


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of ``z`` shifted to the right, zeros in front; torch's own shift repeats the sign."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted
