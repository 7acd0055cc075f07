"""Hydra's launchers: which jobs run where, how many at once, and with how many cores each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlexp.config import ConfigError, Problem, load_hydra, quoted
from rlexp.machine import cores, usable_cpus
from rlexp.sweeps.folder import SweepPlan

_EXTRAS = {"JoblibLauncher": "joblib", "LocalLauncher": "submitit", "SlurmLauncher": "submitit", "RayLauncher": "ray"}


@dataclass(frozen=True)
class CoresPerJob:
    """How many cores each job has.

    Attributes:
        at_once: jobs that run at once on this machine; None where the launcher's own scheduler decides.
        cores: cores of each job.
        rounds: whether to give the launcher ``at_once`` jobs at a time, since it would start all at once.
    """

    at_once: int | None
    cores: int
    rounds: bool = False

    def __str__(self) -> str:
        jobs = "as many at once as fit" if self.at_once is None else f"{self.at_once} at once"
        return f"{jobs}, {self.cores} core{'s' if self.cores > 1 else ''} each"


def share_cores(launcher: DictConfig, jobs: int, cores: int) -> CoresPerJob:
    """Divide this machine's cores among the jobs that a launcher runs at once.

    Args:
        launcher: ``hydra.launcher``.
        jobs: number of jobs.
        cores: number of cores.

    Raises:
        ConfigError: the launcher's settings ask for more cores than there are.
    """
    match _name(launcher):
        case "BasicLauncher":
            return CoresPerJob(1, cores)
        case "JoblibLauncher":
            wanted = launcher.get("n_jobs", -1)
            at_once = max(1, cores + 1 + wanted) if wanted < 0 else wanted
            _check("hydra.launcher.n_jobs", wanted, at_once, cores)
            at_once = min(at_once, jobs)
            return CoresPerJob(at_once, cores // at_once)
        case "LocalLauncher":
            each = launcher.cpus_per_task or 1
            _check("hydra.launcher.cpus_per_task", each, each, cores)
            return CoresPerJob(min(cores // each, jobs), each, rounds=True)
        case "SlurmLauncher":
            return CoresPerJob(None, launcher.cpus_per_task or 1)
        case "RayLauncher":
            each = int(launcher.ray.remote.get("num_cpus", 1))
            if launcher.ray.init.get("address") == "local":
                _check("hydra.launcher.ray.remote.num_cpus", each, each, cores)
            return CoresPerJob(None, each)
        case _:
            return CoresPerJob(None, 1)


def _check(key: str, given: int, needed: int, cores: int) -> None:
    if not 1 <= needed <= cores:
        raise ConfigError([Problem(key, f"must be from 1 to {cores}, the cores of this machine.", str(given))])


def _name(launcher: DictConfig) -> str:
    return str(launcher["_target_"]).rpartition(".")[2]


class JobLauncher:
    """One of Hydra's launchers, used to call a function once for each job number.

    Args:
        task: called in a process of the launcher, with a config whose ``job`` is the number.
        folder: the folder of the sweep.
        jobs: number of jobs that will run.
        plan: the plan of the sweep.

    Raises:
        ConfigError: the launcher does not exist or is not installed, or its settings are wrong.
    """

    def __init__(self, task: Callable[[DictConfig], None], folder: str, jobs: int, plan: SweepPlan) -> None:
        # The launcher composes only Hydra's own settings; a job composes its config as rlexp-train does.
        fixed = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
        fixed += [f"hydra.sweep.dir={quoted(folder)}", "hydra.sweep.subdir=${job}", "hydra.job.chdir=false"]
        _, config = load_hydra([*plan.hydra, *fixed], plan.sources)
        share = share_cores(config.hydra.launcher, jobs, usable_cpus())
        # Where jobs run elsewhere, what this process may use says nothing of them.
        self.share = share if share.at_once is None else replace(share, cores=min(share.cores, cores()))
        fixed.append(f"++hydra.job.env_set.OMP_NUM_THREADS='{self.share.cores}'")
        context, config = load_hydra([*plan.hydra, *fixed], plan.sources)
        # Hydra composes the config of each job again, and expects the launcher's group among the job's overrides.
        self._group = [text for text in plan.hydra if not text.lstrip("+~").startswith("hydra")]
        try:
            self._launcher = Plugins.instance().instantiate_launcher(
                config=config, hydra_context=context, task_function=task
            )
        except (HydraException, OmegaConfBaseException, ImportError, RuntimeError) as error:
            name = _name(config.hydra.launcher)
            install = f" It needs: pip install 'rlexp[{_EXTRAS[name]}]'" if name in _EXTRAS else ""
            raise ConfigError([Problem("hydra/launcher", f"{str(error).strip()}.{install}")]) from error

    def launch(self, numbers: Sequence[int]) -> None:
        """Run the task for each number, and return when all have ended; raises the errors of the launcher itself."""
        size = (self.share.at_once if self.share.rounds else None) or len(numbers)
        for first in range(0, len(numbers), size):
            jobs = [[*self._group, f"+job={number}"] for number in numbers[first : first + size]]
            for returned in self._launcher.launch(jobs, initial_job_idx=first):
                _ = returned.return_value  # raises the exception of the launcher's process
