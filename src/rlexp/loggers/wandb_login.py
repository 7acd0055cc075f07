"""Whether W&B can be logged in to."""

from __future__ import annotations

import logging

import wandb

log = logging.getLogger(__name__)


def logged_in() -> bool:
    """Whether a W&B API key is configured; one that W&B refuses is none, and the log says so."""
    try:
        return bool(wandb.login(prompt=False, verify=False))  # with a prompt it would wait for ever on a terminal
    except Exception as error:  # whatever W&B raises of a malformed key or an unreadable .netrc
        log.warning("W&B refuses the API key that is configured: %s", error)
        return False
