"""Observations as the simulators give them, beside those that the policy sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.envs import Transform, TransformedEnv

from rlexp.envs.torchrl import entries

RAW = "raw_observation"
"""The key under which a batch holds the entries of an observation as the simulators gave them."""


class TakeRaw(Transform):
    """Remembers entries of the newest observations; the first of an environment's transforms.

    Args:
        keys: the entries.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(in_keys=list(keys), out_keys=[])
        self.taken: dict[str, Tensor] = {}

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.taken = {key: next_tensordict[key].clone() for key in self.in_keys}
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)


class PutRaw(Transform):
    """Writes what `TakeRaw` remembers under `RAW`; the last transform, since those between may change every entry.

    Args:
        first: remembers the entries.
        specs: of the entries.
    """

    def __init__(self, first: TakeRaw, specs: Mapping[str, TensorSpec]) -> None:
        super().__init__(in_keys=[], out_keys=[(RAW, key) for key in specs])
        self._first, self.specs = [first], dict(specs)  # in a list, it is no submodule

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key, value in self._first[0].taken.items():
            next_tensordict[RAW, key] = value
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """The entries as they are besides the others."""
        for key, spec in self.specs.items():
            observation_spec[RAW, key] = spec.clone()
        return observation_spec


def keep_raw(env: TransformedEnv) -> None:
    """Let ``env`` observe all its entries twice, raw ones under `RAW`.

    Whatever chooses among the entries of ``env``, a policy among others, is built before.
    """
    specs = {key: env.base_env.observation_spec[key] for key in entries(env.base_env)}
    first = TakeRaw(list(specs))
    env.insert_transform(0, first)
    env.append_transform(PutRaw(first, specs))
