"""A run's folder with one checkpoint, as a W&B artifact and back. What is downloaded is a stranger's."""

from __future__ import annotations

import re
from pathlib import Path

import wandb

from rlexp.config import ConfigError, Problem
from rlexp.loggers.wandb_login import logged_in

_OF_THE_RUN = ("config.yaml", "metadata.json", "metrics.jsonl")
_MAY_HOLD = re.compile(
    r"config\.yaml|metadata\.json|metrics\.jsonl"
    r"|checkpoints/[0-9]{1,18}/(?:manifest\.json|state\.json|session\.json|tensors\.safetensors)"
)


def checkpoint_artifact(checkpoint: Path, run_id: str) -> wandb.Artifact:
    """A checkpoint with the config, metadata and rows of its run, laid out as the run's folder is.

    Args:
        checkpoint: a folder in the run's ``checkpoints``.
        run_id: the run's W&B id.
    """
    artifact = wandb.Artifact(_name(run_id), type="model", metadata={"frames": int(checkpoint.name)})
    run = checkpoint.parents[1]
    for file in (*(run / name for name in _OF_THE_RUN), *sorted(checkpoint.iterdir())):
        artifact.add_file(str(file), name=str(file.relative_to(run)))
    return artifact


def link_best(run: wandb.Run, collection: str) -> None:
    """Link a run's best checkpoint, which the server has, to a collection of a registry.

    Args:
        run: a W&B run that is online.
        collection: ``wandb-registry-REGISTRY/COLLECTION``.
    """
    # Asked for by its name: an earlier process of the run may have uploaded it.
    best = wandb.Api().artifact(f"{run.entity}/{run.project}/{_name(run.id)}:best", type="model")
    run.link_artifact(best, collection)


def download_run(address: str, folder: Path) -> None:
    """Download the newest checkpoint of a W&B run, as a run's folder that can be resumed.

    Args:
        address: ``ENTITY/PROJECT/RUN``.
        folder: a new one.

    Raises:
        ConfigError: there is no such artifact, it cannot be had, or it holds what is no part of a run.
    """

    def refuse(message: str) -> ConfigError:
        return ConfigError([Problem("resume", message, f"wandb:{address}")])

    entity, project, run_id = address.split("/") if address.count("/") == 2 else ("", "", "")
    if not (entity and project and run_id):
        raise refuse("must be wandb:ENTITY/PROJECT/RUN; the run's id is at the end of its address.")
    if folder.exists() and any(folder.iterdir()):
        raise refuse(f"needs a new folder, and {folder} is not empty.")
    if not logged_in():
        raise refuse("needs a W&B API key; `wandb login` stores one.")
    try:
        artifact = wandb.Api().artifact(f"{entity}/{project}/{_name(run_id)}:latest", type="model")
        entries = artifact.manifest.entries
        # A file elsewhere, on this machine or in the network, or one whose name leads out of the folder.
        if strange := [name for name, e in entries.items() if e.ref is not None or not _MAY_HOLD.fullmatch(name)]:
            raise refuse(f"holds what is no part of a run: {strange[0]!r:.100}.")
        artifact.download(root=str(folder), skip_cache=True)
    except ConfigError:
        raise
    except Exception as error:  # whatever W&B raises
        raise refuse(f"cannot be downloaded: {error}. Runs with logger.artifacts=best or all have one.") from error


def _name(run_id: str) -> str:
    return f"{run_id}-checkpoint"
