"""Sweeps: many runs in one folder, launched, indexed, stopped and resumed together. Imports no torch.

from rlexp.sweeps import run_jobs

jobs = run_jobs("outputs/multirun/mine", [["seed=0"], ["seed=1"]], hydra=["launcher=joblib"])
returns = [job.result for job in jobs]
"""

from rlexp.sweeps.engine import LauncherError, run_jobs
from rlexp.sweeps.folder import Job, SweepDir, SweepPlan

__all__ = ["Job", "LauncherError", "SweepDir", "SweepPlan", "run_jobs"]
