"""Observation normalisation: running statistics, saved with the run and frozen for evaluation."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs import ObservationNorm, StepCounter, TransformedEnv

from rlexp.config import ConfigError, Problem
from rlexp.distributed import ALONE, Group
from rlexp.envs.entries import is_vector


class Moments(nn.Module):
    """Mean and variance of everything seen so far, exact, in float64.

    Args:
        shape: shape of one sample.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))

    @torch.no_grad()
    def update(self, samples: Tensor, group: Group = ALONE) -> None:
        """Take in ``samples`` ``[n, *shape]``, and those of the other learners of a group."""
        for moments in group.moments([batch_moments(samples.to(self.mean))]):
            self.merge(*moments)

    @torch.no_grad()
    def merge(self, n: int, mean: Tensor, var: Tensor) -> None:
        """Take in ``n`` samples of this mean and variance (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        mean, var = mean.to(self.mean), var.to(self.var)  # of another process's simulators, perhaps
        total = self.count + n
        delta = mean - self.mean
        merged = (self.var * self.count + var * n) / total
        self.var.copy_(merged + delta.square() * self.count * n / total.square())
        self.mean.add_(delta * n / total)
        self.count.copy_(total)


def batch_moments(samples: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of ``samples`` ``[n, *shape]``."""
    return len(samples), samples.mean(0), samples.var(0, correction=0)


_ROUNDING = 1e-14  # of float64, relative: what a constant's deviation may seem to be
_LARGEST = 1e30


class RunningObservationNorm(ObservationNorm):
    r"""torchrl's ``ObservationNorm`` whose mean and standard deviation follow what the agent sees.

    $o \mapsto \mathrm{clip}((o - \mu) / \sigma, -c, c)$. The statistics stand still while a batch is collected, so that
    all of it is normalised alike whichever process stepped the simulator; `commit` then folds the batch in. Statistics
    and subtraction are in float64, whatever the observation's type; a dimension that has not varied becomes 0, by an
    infinite $\sigma$.

    Args:
        in_keys: the entries to normalise in place; None is what `choose` chooses.
        clip: the bound $c$ on normalised values; None sets none.

    Attributes:
        longest: time limit of an episode in steps, where a later transform sets one.

    Raises:
        ValueError: the bound is not above 0.

    Shapes:
        the statistics have the shape of a lone entry; of several they are ``[n]``, their numbers concatenated.
    """

    def __init__(self, in_keys: Sequence[str] | None = None, clip: float | None = 10.0) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be above 0, or null for no bound, not {clip}")
        super().__init__(in_keys=[] if in_keys is None else list(in_keys), standard_normal=True)
        self._all = in_keys is None
        self._shapes: dict[str, torch.Size] = {}
        self.longest = sys.maxsize
        self.clip = math.inf if clip is None else clip
        self.collecting = True
        self._pending: list[Tensor] = []
        self._merged: list[tuple[int, Tensor, Tensor]] = []

    def choose(self, entries: Mapping[str, TensorSpec]) -> None:
        """Learn what there is to normalise, by the entries of one simulator's observations.

        Without ``in_keys`` that is a lone entry of floating-point numbers, whatever its shape, or, of several entries,
        those of floating-point numbers with fewer than three dimensions.
        """
        if self._all:
            floating = {key: spec.dtype.is_floating_point for key, spec in entries.items()}
            lone = len(entries) == 1
            self.in_keys = self.out_keys = [
                key for key, spec in entries.items() if floating[key] and (lone or is_vector(spec.shape, floating=True))
            ]
        self._shapes = {key: entries[key].shape for key in self.in_keys if key in entries}

    def init_stats(self, num_iter: int, *args: object, **kwargs: object) -> None:
        """Take the first statistics from random steps; they weigh like ``num_iter`` of the agent's own."""
        lone = len(self.in_keys) == 1 and self.parent.observation_spec[self.in_keys[0]].dtype == torch.float64
        if lone and self.longest >= num_iter > 1:
            super().init_stats(num_iter, *args, **kwargs)
        else:  # torchrl's would be computed in the observation's own type
            self._init_joint_stats(num_iter)
        self._pending.clear()
        to = {"device": self.parent.device, "dtype": torch.float64}
        self.loc, self.scale = self.loc.to(**to), self.scale.to(**to)  # type: ignore[has-type]
        self.moments = Moments(self.loc.shape).to(self.loc.device)
        self.moments.count.fill_(num_iter)
        self.moments.mean.copy_(self.loc)
        self.moments.var.copy_(self.scale.square().where(self.scale > self.eps, 0))
        self._set_scale()

    def _init_joint_stats(self, num_iter: int) -> None:
        """As torchrl has it for one entry, but in float64: the statistics of so many steps, episodes whole."""
        data: list[Tensor] = []
        while self.in_keys and sum(map(len, data)) < num_iter:
            rollout = self.parent.rollout(min(num_iter, self.longest))
            data.append(self.joined(rollout).double().flatten(0, rollout.dim() - 1))
        samples = torch.cat(data) if data else torch.zeros(1, 0, dtype=torch.float64)
        loc, scale = samples.mean(0), samples.std(0, correction=min(1, len(samples) - 1)).clamp_min(self.eps)
        for buffer, statistic in ((self.loc, loc), (self.scale, scale)):
            if not statistic.isfinite().all():
                raise RuntimeError("Non-finite values found in the statistics")
            buffer.materialize(shape=statistic.shape, dtype=torch.float64)
            buffer.copy_(statistic)

    def joined(self, entries: Mapping[str, Tensor] | TensorDictBase) -> Tensor:
        """What the statistics are of: the lone entry as it is, or the numbers of several, ``[..., n]``."""
        if len(self.in_keys) == 1:
            return entries[self.in_keys[0]]
        flat = [entries[key].flatten(entries[key].dim() - len(shape)) if shape else entries[key][..., None]
                for key, shape in self._shapes.items()]  # fmt: skip
        return torch.cat([part.double() for part in flat], -1)

    def parts(self, statistic: Tensor) -> dict[str, Tensor]:
        """``loc`` or ``scale`` by entries, each of the entry's shape."""
        if len(self.in_keys) == 1:
            return {self.in_keys[0]: statistic}
        sizes = [shape.numel() for shape in self._shapes.values()]
        split = statistic.split(sizes) if sizes else ()
        return {key: part.view(self._shapes[key]) for key, part in zip(self._shapes, split, strict=True)}

    def commit(self) -> None:
        """Fold in the observations stepped to since the last commit, each once; those of resets do not count."""
        batch = [*self._merged, *self.take()]
        self._merged.clear()
        for moments in batch:
            self.moments.merge(*moments)
        if batch:
            self.loc.copy_(self.moments.mean)
            self._set_scale()

    def _set_scale(self) -> None:
        deviation = self.moments.var.sqrt()
        constant = deviation <= _ROUNDING * self.moments.mean.abs()
        self.scale.copy_(deviation.clamp_min(self.eps).masked_fill(constant, torch.inf))

    def take(self) -> list[tuple[int, Tensor, Tensor]]:
        """Count, mean and variance, in float64, of what `observe` has gathered since the last call, if anything."""
        if not self._pending:
            return []
        samples = torch.cat([o.reshape(-1, *self.loc.shape) for o in self._pending])
        self._pending.clear()
        return [batch_moments(samples.to(torch.float64))]

    def merge(self, n: int, mean: Tensor, var: Tensor) -> None:
        """Keep for the next `commit` the moments that the same transform took in another process (`take`)."""
        self._merged.append((n, mean, var))

    def observe(self, observations: Tensor) -> None:
        """Keep raw observations, ``[..., *loc.shape]`` as `joined` gives them, for the next `commit`."""
        if self.collecting:
            self._pending.append(observations)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self.in_keys:
            self.observe(self.joined(next_tensordict))
        return super()._step(tensordict, next_tensordict)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        if len(self.in_keys) == 1:
            return cast("TensorDictBase", super()._call(next_tensordict))
        locs, scales = self.parts(self.loc), self.parts(self.scale)
        for key, loc in locs.items():
            if key in next_tensordict:  # a policy outside of its environment may not read all of them
                obs = next_tensordict.get(key)
                next_tensordict.set(key, self._clipped((obs - loc) / scales[key], obs.dtype))
        return next_tensordict

    def _apply_transform(self, obs: Tensor) -> Tensor:
        return self._clipped(super()._apply_transform(obs), obs.dtype)

    def _clipped(self, normalized: Tensor, dtype: torch.dtype) -> Tensor:
        return normalized.clamp(-self.clip, self.clip).to(dtype)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Transform the bounds of a lone entry; torchrl checks none of several entries."""
        return super().transform_observation_spec(observation_spec) if len(self.in_keys) == 1 else observation_spec


def observation_norms(env: TransformedEnv) -> list[ObservationNorm]:
    """The normalising transforms of ``env``, in order."""
    return [t for t in env.transform if isinstance(t, ObservationNorm)]


def init_normalization(env: TransformedEnv, random_steps: int) -> None:
    """Give every observation normalisation its first statistics, from random steps in ``env`` as the tutorial does."""
    dims = tuple(range(len(env.batch_size) + 1))
    # The steps are of the environment before each transform, and so before the one that ends episodes.
    limits = [part.max_steps for part in env.transform if isinstance(part, StepCounter) and part.max_steps is not None]
    for norm in observation_norms(env):
        if isinstance(norm, RunningObservationNorm):
            norm.longest = min([norm.longest, *limits])
            steps = random_steps
        else:
            steps = min([random_steps, *limits])
        try:
            norm.init_stats(steps, reduce_dim=dims, cat_dim=dims[-1])
        except RuntimeError as error:
            if "Non-finite" not in str(error):
                raise
            raise _beyond_statistics("are infinite, NaN, or too large for their variance to be a number") from error
        if beyond_statistics(norm):
            raise _beyond_statistics(f"reach {_LARGEST:g} and more on average")
        if type(norm) is ObservationNorm:
            _silence_constants(norm)


def beyond_statistics(norm: ObservationNorm) -> bool:
    """Whether observations were so large that nothing else can be seen beside them."""
    return bool((norm.loc.abs() > _LARGEST).any())


def _silence_constants(norm: ObservationNorm) -> None:
    """Map a dimension that did not vary to 0; torchrl would divide its later deviations by 1e-6."""
    if norm.standard_normal:
        norm.scale.masked_fill_(norm.scale <= norm.eps, torch.inf)
    else:
        constant = norm.scale >= 1 / norm.eps
        norm.scale.masked_fill_(constant, 0)
        norm.loc.masked_fill_(constant, 0)


def _beyond_statistics(what: str) -> ConfigError:
    message = (
        f"normalise the observations, and those of random steps {what}. In the environment, replace placeholders for "
        "a missing reading by 0 and a flag, or give env/transforms=none."
    )
    return ConfigError([Problem("env.transforms", message)])


def commit_normalization(env: TransformedEnv, group: Group = ALONE) -> None:
    """Let the running statistics take in the batch that was just collected, by all learners of a group."""
    for norm in observation_norms(env):
        if isinstance(norm, RunningObservationNorm):
            for moments in group.moments(norm.take()):
                norm.merge(*moments)
            norm.commit()


def copy_normalization(source: TransformedEnv, target: TransformedEnv) -> None:
    """Freeze ``target``'s normalisation at ``source``'s statistics of this moment."""
    for ours, theirs in zip(observation_norms(source), observation_norms(target), strict=True):
        theirs.loc, theirs.scale = ours.loc.clone(), ours.scale.clone()
        if isinstance(theirs, RunningObservationNorm):
            theirs.collecting = False
