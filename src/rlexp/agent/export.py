"""A trained policy as one file that needs neither this package nor torchrl: ONNX, or torch.export."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlexp.agent import Agent, Policy

CHECKED = 1000


class ExportError(Exception):
    """The policy cannot be exported, or the export acts otherwise than the policy; no file was written."""


def export_policy(agent: Agent, kind: Literal["onnx", "torch"], path: Path) -> Path:
    """Write the policy of an agent as one graph: raw observations in, the environment's actions out.

    The graph takes ``observation`` ``[batch, *observation]`` in the simulator's own type, for any batch of at least
    one, and gives ``action`` ``[batch, *action]``; normalisation and action bounds are inside. Before ``path`` appears,
    the file is read back and compared with what the agent did on 1,000 observations in its environment.

    Args:
        agent: a trained agent, on the CPU.
        kind: ``onnx``, or ``torch`` for ``torch.export.load``.
        path: the file; replaced if it is there.

    Returns:
        ``path``.

    Raises:
        UnfaithfulPolicyError: the policy cannot act on observations alone.
        ExportError: the export fails, or differs from the agent by more than rounding explains.
    """
    policy = Policy(agent)
    if policy.recurrent:
        raise ExportError(
            f"{agent.path} has a policy with a memory, and a graph of one observation has none; load_policy gives it."
        )
    observations, actions = agent.steps(CHECKED)
    write, read = {"onnx": (_write_onnx, _read_onnx), "torch": (_write_torch, _read_torch)}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp.pt2")  # torch.export.save takes no other suffix
    try:
        try:
            write(policy, observations, aside)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"{agent.path} has a policy that {kind} cannot express: {reason}") from error
        graph = read(aside)
        # One observation at a time too: a graph that took its batch dimension for a constant fails here.
        single = torch.cat([graph(observation[None]) for observation in observations[:10]])
        for given, expected in ((graph(observations), actions), (single, actions[:10])):
            if (difference := agent.unlike(given, expected)) is not None:
                raise ExportError(f"{agent.path} as {kind} acts otherwise than the agent itself: {difference}.")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write_onnx(policy: Policy, observations: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns of torch's own calls
        program = torch.onnx.export(
            policy,
            (observations,),
            dynamo=True,
            verbose=False,
            input_names=["observation"],
            output_names=["action"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda observation: torch.from_numpy(session.run(["action"], {"observation": observation.numpy()})[0])


def _write_torch(policy: Policy, observations: Tensor, path: Path) -> None:
    program = torch.export.export(policy, (observations,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()
    return lambda observation: module(observation)
