"""The device collector against torchrl's, entry by entry; that it never waits for the device, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from agents import networks
from replay import Replay, seeded
from slider import Nested
from tensordict import TensorDictBase
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, TransformedEnv

from rlexp import load_config
from rlexp.config import ConfigError
from rlexp.envs.normalization import commit_normalization, init_normalization, observation_norms
from rlexp.experiment import ExperimentConfig
from rlexp.kernels import device_rollout, rollout
from rlexp.kernels.device_rollout import DeviceCollector, DeviceTransforms
from rlexp.kernels.distributions import Parts
from rlexp.kernels.unsupported import UnsupportedError
from rlexp.policies.recurrent import carry_state

CPU = torch.device("cpu")
SLIDER = ["env=torchrl", "env.make={_target_: slider.Slider, num_envs: 4}", "collector=device"]
CLIPPED = "env.transforms.clip={_target_: torchrl.envs.RewardClipping, clamp_min: 0.5, clamp_max: 0.9}"
SCALED = "env.transforms.scale={_target_: torchrl.envs.RewardScaling, loc: 0.5, scale: 0.1}"
LIMITED = "env.transforms.step_counter.max_steps=9"
CASES = {
    "cartpole": ["env=torch_cartpole", LIMITED],
    "cartpole, one row": ["env=torch_cartpole", "env.num_envs=1"],
    "gru": ["env=torch_cartpole", "policy=gru", LIMITED],
    "slider": [*SLIDER, CLIPPED],
    "limited": [*SLIDER, LIMITED, SCALED, "env/transforms=frozen"],
    "as it is": [*SLIDER, "env/transforms=none", "policy=normal"],
}


def settings(*overrides: str) -> ExperimentConfig:
    return load_config(["env.num_envs=4", "collector.frames_per_batch=128", "minibatch_size=64", *overrides])


def collector(config: ExperimentConfig, env: TransformedEnv) -> DeviceCollector:
    actor = config.policy.build(env, CPU).actor
    carry_state(env, actor)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return DeviceCollector(env, actor, config.steps_per_batch, CPU)


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_batches_equal_torchrls_entry_by_entry(overrides: list[str]) -> None:
    config = settings(*overrides)
    ours, theirs = seeded(config), seeded(config)
    subject = collector(config, ours)
    batches = []
    for _ in range(2):
        batches.append(subject.rollout())
        commit_normalization(ours)
    carry_state(theirs, subject.actor)
    replay = Replay(subject.actor, batches)
    reference = iter(
        Collector(
            theirs,
            replay,
            frames_per_batch=config.steps_per_batch,
            total_frames=-1,
            split_trajs=False,
            storing_device=CPU,
            trust_policy=True,
            auto_register_policy_transforms=False,
        )
    )
    replay.t = 0  # it tried the policy
    assert sum(batch["next", "done"].sum() for batch in batches) > 5
    for batch in batches:
        expected = next(reference)
        commit_normalization(theirs)
        assert set(batch.keys(True, True)) == set(expected.keys(True, True))
        assert (batch.batch_size, batch.names, batch.device) == (expected.batch_size, expected.names, expected.device)
        for key in expected.keys(True, True):
            assert batch[key].dtype == expected[key].dtype, key
            assert batch[key].is_contiguous()
            if key in ("episode_reward", ("next", "episode_reward")):  # added up in another order
                torch.testing.assert_close(batch[key], expected[key], rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(batch[key], expected[key]), key
    for a, b in zip(observation_norms(ours), observation_norms(theirs), strict=True):
        assert torch.equal(a.loc, b.loc)
        assert torch.equal(a.scale, b.scale)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: reading a number, and shapes that depend on numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "masked_select", "index.T"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["cartpole", "gru", "slider", "limited"])
def test_the_host_does_not_wait_for_a_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waits for, such as the check of a distribution's bounds, it waits for once a batch."""
    counts = set()
    for frames in (64, 128):
        config = settings(*CASES[case], f"collector.frames_per_batch={frames}")
        subject = collector(config, seeded(config))
        with Waits() as waits, monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "numpy", None)
            subject.rollout()
        counts.add(waits.count)
    assert len(counts) == 1
    assert counts.pop() <= 4
    with Waits() as waits:
        torch.ones(3)[torch.ones(3, dtype=torch.bool)].sum().item()
    assert waits.count == 2


@pytest.mark.parametrize("policy", [["env=hopper"], ["env=hopper", "policy=normal"], ["env=acrobot"]])
def test_a_sample_is_the_action_of_the_same_noise(policy: list[str]) -> None:
    env, *options = policy
    options += ["policy=categorical"] if env == "env=acrobot" else []
    parts = Parts.of(networks(*options, env=env.removeprefix("env=")).actor)
    assert parts is not None
    found = parts.network(torch.randn(5, 11 if env == "env=hopper" else 6))
    parameters = tuple(p.detach() for p in (found if isinstance(found, tuple) else (found,)))
    torch.manual_seed(1)
    sampled = parts.family.sample(*parameters)
    torch.manual_seed(1)
    noise = parts.family.noise(parameters[0].shape).numpy()
    acted = torch.as_tensor(parts.family.act(tuple(p.numpy() for p in parameters), noise))
    torch.testing.assert_close(sampled, acted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["cartpole", "gru", "slider"])
def test_state_goes_on_where_it_was(case: str) -> None:
    """A second collector over the same simulators goes on exactly as the first would have."""
    config = settings(*CASES[case])
    batches: dict[bool, list[TensorDictBase]] = {}
    for swap in (False, True):
        env = seeded(config)
        subject = collector(config, env)
        batches[swap] = [subject.rollout()]
        commit_normalization(env)
        if swap:
            state = subject.state_dict()
            kept = vars(env.base_env).copy(), dict(getattr(env.base_env, "_rows", {}))
            subject = DeviceCollector(env, subject.actor, config.steps_per_batch, CPU)  # resets the simulators
            vars(env.base_env).update(kept[0])
            getattr(env.base_env, "_rows", {}).update(kept[1])
            subject.load_state_dict(state)
        batches[swap].append(subject.rollout())
    for a, b in zip(batches[False], batches[True], strict=True):
        assert (a == b).all()


def test_returns_and_ids_are_those_of_the_array_rollout() -> None:
    generator = np.random.default_rng(0)
    done, reward = generator.random((50, 4)) < 0.2, generator.random((50, 4))
    carried, ids = generator.random(4), np.arange(4)
    expected = rollout.episode_returns(reward, done, carried)
    found = device_rollout.episode_returns(*(torch.from_numpy(x)[..., None] for x in (reward, done, carried)))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b[..., 0], rtol=1e-12)
    *numbers, unused = rollout.trajectory_ids(done, ids, 4)
    *found_numbers, found_unused = device_rollout.trajectory_ids(
        torch.from_numpy(done), torch.from_numpy(ids), torch.tensor(4)
    )
    assert all((a == b.numpy()).all() for a, b in zip(numbers, found_numbers, strict=True))
    assert found_unused == unused


PENDULUM = "env.make={_target_: torchrl.envs.GymEnv, env_name: Pendulum-v1}"
STATELESS = "env.make={_target_: slider.Stateless, num_envs: 4}"
SLIDES = "env.make={_target_: slider.Slider, num_envs: 4}"
RESCALED = (
    "env.transforms.observation_norm={_target_: torchrl.envs.ObservationNorm, in_keys: [observation], "
    "out_keys_inv: [action], in_keys_inv: [action], standard_normal: true}"
)
BINARY = "env.transforms.binary={_target_: torchrl.envs.BinarizeReward}"


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (["env=cartpole"], "BatchedGymEnv steps its simulators one by one"),
        (["env=torchrl", PENDULUM], "SerialEnv steps its simulators one by one"),
        (["env=torchrl", STATELESS], "keeps its state in the tensordict"),
        (["env=torch_cartpole", BINARY], "BinarizeReward with these settings has no kernel"),
        (["env=torchrl", SLIDES, "env/transforms=frozen", RESCALED], "ObservationNorm with these settings has no"),
    ],
)
def test_what_it_cannot_collect_is_refused_with_the_remedy(overrides: list[str], reported: str) -> None:
    config = settings(*overrides, "collector=device")
    with pytest.raises(ConfigError, match=rf"{reported}(.|\n)*Use collector=sync"):
        _built(config, CPU)


def test_nested_observations_are_refused() -> None:
    env = TransformedEnv(Nested(4), Compose(RewardSum()))
    with pytest.raises(UnsupportedError, match="nested entries"):
        DeviceTransforms(env)


def test_simulators_on_another_device_are_refused() -> None:
    config = settings("env=torch_cartpole")
    with pytest.raises(ConfigError, match="the environment is on cpu and the policy on cuda"):
        _built(config, torch.device("cuda"))


def _built(config: ExperimentConfig, device: torch.device) -> Any:
    from rlexp.collectors import Source

    env = config.env.build(4)
    init_normalization(env, 8)
    actor = config.policy.build(env, CPU).actor
    build: Callable[..., Any] = config.collector.build
    return build(env, actor, Source(config.env, config.policy, 0, True), device)
