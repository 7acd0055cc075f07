"""What rlexp is measured against: one system on one workload in a process of its own.

python scripts/baselines.py SYSTEM WORKLOAD FRAMES SEED   prints one JSON object; see `benchmark.py`, which calls it.
FRAMES are rounded up to whole batches. Of workload G a system is stopped by its first good evaluation.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Workload:
    """One setting that every system is given alike.

    Attributes:
        env_id: Gymnasium's id; empty where the preset has the environment.
        num_envs: simulators stepped together.
        steps: of each simulator in a batch.
        minibatch: steps of a gradient step.
        cells: hidden layers of actor and critic.
        preset: what rlexp is told besides.
    """

    env_id: str
    num_envs: int
    steps: int
    minibatch: int
    cells: tuple[int, ...]
    preset: list[str] = field(default_factory=list)

    def overrides(self) -> list[str]:
        """The workload as rlexp's settings."""
        batch = self.num_envs * self.steps
        return [
            *self.preset,
            *([f"env.id={self.env_id}"] if self.env_id else []),
            *(f"env.num_envs={self.num_envs}", f"collector.frames_per_batch={batch}"),
            *(f"minibatch_size={self.minibatch}", f"policy.num_cells=[{','.join(map(str, self.cells))}]"),
        ]


PENDULUM = "InvertedDoublePendulum-v5"
MUJOCO = ("HalfCheetah", "Hopper", "Ant", "Humanoid")
GOOD = 9_300  # mean return of ten deterministic episodes; the ceiling is 9,360
WORKLOADS = {
    "A": Workload("InvertedDoublePendulum-v4", 1, 1000, 64, (256, 256, 256), ["experiment=tutorial"]),
    "B": Workload(PENDULUM, 1, 2048, 64, (64, 64)),
    "C": Workload(PENDULUM, 16, 128, 512, (64, 64)),
    "D": Workload("Humanoid-v5", 16, 128, 512, (64, 64), ["env=gym"]),
    **{f"E{n}": Workload(PENDULUM, n, max(16, 2048 // n), 64, (64, 64)) for n in (1, 16, 64, 256)},
    "G-tutorial": Workload("InvertedDoublePendulum-v4", 1, 1000, 64, (256, 256, 256)),
    "G-stable-baselines3": Workload(PENDULUM, 16, 64, 256, (64, 64)),
    "F64": Workload(PENDULUM, 16, 128, 64, (64, 64)),
    "F512": Workload(PENDULUM, 16, 128, 512, (64, 64)),
    **{f"L-{name}": Workload(f"{name}-v5", 16, 128, 2048, (64, 64), ["env=gym"]) for name in MUJOCO},
    "K": Workload("", 512, 32, 2048, (64, 64), ["env=torch_cartpole"]),
}


class Clock:
    """Seconds by kind of work, and when a system was first good; evaluations are not counted.

    Args:
        env_id: where systems are evaluated; None evaluates none.
    """

    def __init__(self, env_id: str | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.solved: float | None = None
        self.best = 0.0
        self.others_kib = 0
        self._env_id = env_id
        self._evaluating = 0.0

    def solves(self, act: Callable[[Array], Array]) -> bool:
        """Whether a policy, observations ``[10, ...]`` -> actions, is good: ten whole episodes, side by side."""
        if self._env_id is None:
            return False
        start = time.time()
        self.best = max(self.best, mean_return(self._env_id, act))
        good = self.best >= GOOD
        if good:
            self.solved = start - self._evaluating
        self._evaluating += time.time() - start
        return good

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Count what happens inside as ``kind``."""
        start = time.perf_counter()
        yield
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start


def mean_return(env_id: str, act: Callable[[Array], Array], episodes: int = 10) -> float:
    """Of whole episodes, one a simulator."""
    import gymnasium

    envs = [gymnasium.make(env_id) for _ in range(episodes)]
    observations = np.array([env.reset(seed=i)[0] for i, env in enumerate(envs)])
    total, running = 0.0, set(range(episodes))
    while running:
        actions = act(observations)
        for i in tuple(running):
            observations[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            total += float(reward)
            if terminated or truncated:
                running.remove(i)
    return total / episodes


def rlexp(work: Workload, frames: int, seed: int, clock: Clock, *settings: str) -> None:
    """The trainer's own loop without its surroundings: collect and update."""
    from rlexp import Trainer, load_config
    from rlexp.envs import SimulatorConfig
    from rlexp.machine import cores as usable_cores

    batch = work.num_envs * work.steps
    budget = [f"total_frames={frames}", f"seed={seed}", "logger=none", "evaluation.episodes=1"]
    # As many workers as a run of a million frames takes by itself.
    env = load_config([*work.overrides(), *settings]).env.with_workers(1_024_000, usable_cores())
    workers = [f"env.num_workers={env.num_workers}"] if isinstance(env, SimulatorConfig) else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer.from_config(load_config([*work.overrides(), *budget, *settings, *workers]), folder)
        for _ in range(frames // batch):
            with clock("collect"):
                data = trainer.collect()
            with clock("update"):
                trainer.batch_metrics(data)
                trainer.update(data)
        for simulators in (trainer.env.base_env, trainer.evaluator.env.base_env):
            clock.others_kib += sum(map(peak_kib, (worker.pid for worker in getattr(simulators, "workers", ()))))
        trainer.close()


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def rlexp_envpool(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same on EnvPool's simulators, a thread a core."""
    rlexp(work, frames, seed, clock, "env.backend=envpool")


def rlexp_alone(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same in one process."""
    rlexp(work, frames, seed, clock, "env.num_workers=1")


def rlexp_sync(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same with torchrl's collector."""
    rlexp(work, frames, seed, clock, "collector=sync")


def rlexp_gymnasium(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same on Gymnasium's simulators, in as many processes as pay, and not on MuJoCo's batches."""
    rlexp(work, frames, seed, clock, "env.backend=gymnasium")


def tutorial(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """Torchrl's PPO tutorial with the names of torchrl 0.14, evaluation left out."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from tensordict.nn.distributions import NormalParamExtractor
    from torchrl.collectors import Collector
    from torchrl.data.replay_buffers import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
    from torchrl.envs import Compose, DoubleToFloat, ObservationNorm, StepCounter, TransformedEnv
    from torchrl.envs.libs.gym import GymEnv
    from torchrl.envs.utils import ExplorationType, set_exploration_type
    from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    torch.manual_seed(seed)
    env = TransformedEnv(
        GymEnv(work.env_id), Compose(ObservationNorm(in_keys=["observation"]), DoubleToFloat(), StepCounter())
    )
    env.set_seed(seed)
    env.transform[0].init_stats(num_iter=1000, reduce_dim=0, cat_dim=0)
    low, high = env.action_spec.space.low, env.action_spec.space.high
    features, actions = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    policy = ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(mlp(features, 2 * actions, work.cells), NormalParamExtractor()),
            in_keys=["observation"],
            out_keys=["loc", "scale"],
        ),
        spec=env.action_spec,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": low, "high": high},
        return_log_prob=True,
    )
    value = ValueOperator(mlp(features, 1, work.cells), in_keys=["observation"])
    collector = Collector(env, policy, frames_per_batch=work.steps, total_frames=frames, split_trajs=False)
    buffer = ReplayBuffer(storage=LazyTensorStorage(work.steps), sampler=SamplerWithoutReplacement())
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=value, average_gae=True)
    loss = ClipPPOLoss(policy, value, clip_epsilon=0.2, entropy_bonus=True, entropy_coeff=1e-4, critic_coeff=1.0)
    optim = torch.optim.Adam(loss.parameters(), 3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, frames // work.steps, 0.0)

    def act(observations: Array) -> Array:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            normalized = (torch.from_numpy(observations) * env.transform[0].scale + env.transform[0].loc).float()
            actions: Array = policy(TensorDict({"observation": normalized}))["action"].numpy()
        return actions

    batches = iter(collector)
    for collected in range(frames // work.steps):
        with clock("collect"):
            data = next(batches)
        with clock("update"):
            for _ in range(10):
                advantage(data)
                buffer.extend(data.reshape(-1))
                for _ in range(work.steps // work.minibatch):
                    losses = loss(buffer.sample(work.minibatch))
                    total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                    total.backward()
                    nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                    optim.step()
                    optim.zero_grad()
            scheduler.step()
        if collected % 10 == 9 and clock.solves(act):
            break
    collector.shutdown()


def stable_baselines3(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """stable-baselines3's PPO, with no observation normalisation, which rlexp does."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    env = make_vec_env(work.env_id, n_envs=work.num_envs, seed=seed)
    arch = {"net_arch": {"pi": list(work.cells), "vf": list(work.cells)}}
    model = PPO("MlpPolicy", env, n_steps=work.steps, batch_size=work.minibatch, n_epochs=10, policy_kwargs=arch,
                seed=seed, device="cpu")  # fmt: skip
    with clock("all"):
        model.learn(frames)


def stable_baselines3_normalized(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same at its best on workload G: rlexp's settings, normalisation included, and twice the frames.

    Over the 102,400 that rlexp has, the one seed that was tried did not get to 9,300.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    class Evaluate(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return self.num_timesteps % 10_240 != 0 or not clock.solves(act)

    def act(observations: Array) -> Array:
        actions: Array = model.predict(env.normalize_obs(observations), deterministic=True)[0]
        return actions

    torch.set_num_threads(1)
    env = VecNormalize(make_vec_env(work.env_id, n_envs=work.num_envs, seed=seed), gamma=0.99)
    arch = {"net_arch": {"pi": list(work.cells), "vf": list(work.cells)}}
    model = PPO("MlpPolicy", env, n_steps=work.steps, batch_size=work.minibatch, n_epochs=10, policy_kwargs=arch,
                learning_rate=lambda left: 7e-4 * left, seed=seed, device="cpu")  # fmt: skip
    with clock("all"):
        model.learn(frames, callback=Evaluate())


def gymnasium_loop(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """Gymnasium's simulators in a bare Python loop on one core, random actions."""
    step = bare_loop(work.env_id, work.num_envs, seed)
    with clock("collect"):
        step(frames // work.num_envs)


def gymnasium_loops(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same on all cores: a process a core, each with its share of the simulators, none waiting for another."""
    context = multiprocessing.get_context("spawn")
    processes = min(cores(), work.num_envs)
    together = context.Barrier(processes + 1)
    bounds = [work.num_envs * i // processes for i in range(processes + 1)]
    loops = [
        context.Process(target=bare_loop_once, args=(work.env_id, stop - first, seed + first, steps, together))
        for steps in [frames // work.num_envs]
        for first, stop in pairwise(bounds)
    ]
    for process in loops:
        process.start()
    together.wait()
    with clock("collect"):
        together.wait()
    for process in loops:
        process.join()


def bare_loop_once(env_id: str, num_envs: int, seed: int, steps: int, together: Barrier) -> None:
    """A bare loop in a process of its own; all begin and end together."""
    step = bare_loop(env_id, num_envs, seed)
    together.wait()
    step(steps)
    together.wait()


def physics(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """MuJoCo's steps alone, of one simulator in a loop with random actions; Gymnasium's Python is not counted."""
    import gymnasium

    spent = 0.0

    def timed(simulate: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal spent
            start = time.perf_counter()
            simulate(*arguments)
            spent += time.perf_counter() - start

        return call

    env = gymnasium.make(work.env_id)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    base: Any = env.unwrapped
    base.do_simulation = timed(base.do_simulation)
    for _ in range(frames):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    clock.seconds["collect"] = spent


def bare_loop(env_id: str, num_envs: int, seed: int) -> Callable[[int], None]:
    """Steps simulators so many times, each after the other, and resets those that are done."""
    import gymnasium

    envs = [gymnasium.make(env_id) for _ in range(num_envs)]
    for i, env in enumerate(envs):
        env.reset(seed=seed + i)
        env.action_space.seed(seed + i)
    actions = [envs[0].action_space.sample() for _ in range(1000)]

    def step(steps: int) -> None:
        for t in range(steps):
            for env in envs:
                *_, terminated, truncated, _ = env.step(actions[t % 1000])
                if terminated or truncated:
                    env.reset()

    return step


def envpool_loop(work: Workload, frames: int, seed: int, clock: Clock, pause: float = 0.0) -> None:
    """EnvPool's simulators in a bare loop, a thread a core, random actions.

    Its step after the end of an episode resets, and is no frame: a system that trains could not use it.
    """
    import envpool

    threads = min(cores(), work.num_envs)
    env = envpool.make_gymnasium(work.env_id, num_envs=work.num_envs, num_threads=threads, seed=seed)
    env.reset()
    shape = (1000, work.num_envs, *env.action_space.shape)
    actions = np.random.default_rng(seed).uniform(-1, 1, shape).astype(env.action_space.dtype)
    made = resets = t = 0
    with clock("collect"):
        while made < frames:
            *_, terminated, truncated, _ = env.step(actions[t % 1000])
            made, t = made + work.num_envs - resets, t + 1
            resets = int((terminated | truncated).sum())
            resume = time.perf_counter() + pause
            while time.perf_counter() < resume:
                pass


def envpool_loop_paused(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """The same with 80 us between steps: what a policy and the normalisation of 16 observations take, and no more."""
    envpool_loop(work, frames, seed, clock, 80e-6)


def bare_update(work: Workload, frames: int, seed: int, clock: Clock) -> None:
    """PPO's update in bare torch on tensors at hand: no collection, no advantage estimation, no logging."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    n, features = work.num_envs * work.steps, 9
    actor, critic, log_scale = mlp(features, 1, work.cells), mlp(features, 1, work.cells), nn.Parameter(torch.zeros(1))
    parameters = [*actor.parameters(), log_scale, *critic.parameters()]
    optim = torch.optim.Adam(parameters, 3e-4, fused=True)
    columns = torch.randn(n, features), torch.randn(n, 1), torch.randn(n), torch.randn(n), torch.randn(n, 1)
    for _ in range(frames // n):
        with clock("update"):
            for _ in range(10):
                for indices in torch.randperm(n)[: n // work.minibatch * work.minibatch].view(-1, work.minibatch):
                    observation, latent, old, advantage, target = (column[indices] for column in columns)
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                    z = (latent - actor(observation)) / log_scale.exp()
                    ratio = (-0.5 * z.square().sum(-1) - log_scale.sum() - old).clamp(-1, 1).exp()
                    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                    loss = -gain.mean() + 0.5 * nn.functional.mse_loss(critic(observation), target)
                    optim.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(parameters, 0.5)
                    optim.step()


def mlp(features: int, out: int, cells: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with tanh between them."""
    widths = (features, *cells)
    hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], out))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


SYSTEMS: dict[str, Callable[[Workload, int, int, Clock], None]] = {
    "rlexp": rlexp,
    "rlexp-alone": rlexp_alone,
    "rlexp-envpool": rlexp_envpool,
    "rlexp-sync": rlexp_sync,
    "rlexp-gymnasium": rlexp_gymnasium,
    "physics": physics,
    "tutorial": tutorial,
    "stable-baselines3": stable_baselines3,
    "stable-baselines3-normalized": stable_baselines3_normalized,
    "gymnasium-loop": gymnasium_loop,
    "gymnasium-loops": gymnasium_loops,
    "envpool-loop": envpool_loop,
    "envpool-loop-paused": envpool_loop_paused,
    "bare-update": bare_update,
}


def main() -> None:
    """Run one system on one workload."""
    warnings.filterwarnings("ignore")
    system, work, seed = sys.argv[1], WORKLOADS[sys.argv[2]], int(sys.argv[4])
    batch = work.num_envs * work.steps
    frames = -(-int(sys.argv[3]) // batch) * batch
    clock = Clock(work.env_id if sys.argv[2].startswith("G-") else None)
    SYSTEMS[system](work, frames, seed, clock)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + clock.others_kib) / 1024
    print(
        json.dumps(
            {
                "frames": frames,
                "seconds": clock.seconds,
                "peak_mib": round(memory),
                "solved": clock.solved,
                "best": clock.best,
            }
        )
    )


if __name__ == "__main__":
    main()
