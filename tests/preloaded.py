"""What the warm process imports and sets up, so that the processes forked from it find it done."""

from __future__ import annotations

import gc
import importlib
import os
from contextlib import suppress

from commands import without_plots
from composing import copy_shipped
from hydra.core.plugins import Plugins
from wandb import wandb_agent

from rlexp import workers

# The commands, and what they or other packages import only when it is used.
for _module in (
    *("rlexp.cli.train", "rlexp.cli.evaluate", "rlexp.cli.export", "rlexp.cli.report", "rlexp.cli.config"),
    *("rlexp.cli.search", "rlexp.training.trainer", "rlexp.runs.resume", "rlexp.report.page", "rlexp.loggers.wandb"),
    *("rlexp.envs.mujoco.batch", "rlexp.envs.mujoco.tasks", "rlexp.policies.building", "rlexp.policies.inputs"),
    *("rlexp.losses.kl_penalty", "rlexp.losses.surrogates", "rlexp.kernels.losses", "rlexp.kernels.gradient"),
    *("gymnasium.envs.mujoco", "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.JpegImagePlugin"),
    *("safetensors.torch", "ray.dag", "wandb.sdk.launch.inputs.internal", "wandb.cli.cli"),
    *("rlexp.search.study", "optuna.storages"),
    *("opentelemetry.exporter.otlp.proto.http.metric_exporter", "opentelemetry.exporter.otlp.proto.http._log_exporter"),
):
    with suppress(ImportError):  # of a package that is not installed
        importlib.import_module(_module)
Plugins.instance()  # Hydra imports all of its plugins
copy_shipped()
without_plots()
os.fsync = lambda fd: None  # as in conftest.py
for _module in ("study", "confirmation"):
    vars(importlib.import_module(f"rlexp.search.{_module}"))["POLL"] = (
        0.05  # seconds; processes of a search wait for each other
    )
wandb_agent.Agent.POLL_INTERVAL = 0.5  # seconds
workers._GRACE = 1.0  # seconds; what is started cold has the whole time
gc.collect()
gc.freeze()  # a collection writes to every object, and the forked processes would copy the memory that they share
