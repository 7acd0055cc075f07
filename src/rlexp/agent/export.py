"""Export of a trained policy to ONNX or ``torch.export``, to run without this package and torchrl."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlexp.agent import Agent, Policy
from rlexp.envs.actions import ACTION_MASK

Inputs: TypeAlias = dict[str, Tensor]
Graph: TypeAlias = Callable[[Inputs], Tensor]

CHECKED = 1000


class ExportError(Exception):
    """The policy cannot be exported, or the export's actions differ from the policy's; no file was written."""


def export_policy(agent: Agent, kind: Literal["onnx", "torch"], path: Path) -> Path:
    """Write the policy of an agent as one graph, from raw observations to the environment's actions.

    The graph takes ``observation`` ``[batch, *observation]`` in the simulator's own type, for any batch size of at
    least one, and returns ``action`` ``[batch, *action]``; it includes normalisation and action bounds. Where there are
    several entries, it takes those that the actor reads, by their names, or for ``torch`` a dictionary of them; with
    masks of actions also ``action_mask`` ``[batch, values]`` bool. Before ``path`` appears, the file is loaded and
    compared with the agent's actions on 1,000 observations of its environment.

    Args:
        agent: a trained agent, on the CPU.
        kind: ``onnx``, or ``torch`` for ``torch.export.load``.
        path: the file; an existing one is replaced.

    Returns:
        ``path``.

    Raises:
        UnfaithfulPolicyError: the policy cannot act on observations alone.
        ExportError: the export fails, or differs from the agent by more than rounding explains.
    """
    policy = Policy(agent)
    if policy.recurrent:
        raise ExportError(
            f"{agent.path} has a recurrent policy, and the graph maps one observation to one action; use load_policy."
        )
    seen, actions = agent.steps(CHECKED)
    inputs = {key: seen[key] for key in (*policy.shapes, *([ACTION_MASK] if policy.masked else []))}
    write = {"onnx": _write_onnx, "torch": _write_torch}[kind]
    read: Callable[[Path], Graph] = _read_onnx if kind == "onnx" else partial(_read_torch, policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp.pt2")  # torch.export.save takes no other suffix
    try:
        try:
            write(policy, inputs, aside)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"{agent.path} has a policy that {kind} cannot express: {reason}") from error
        graph = read(aside)
        # Single observations too: a graph with a constant batch dimension fails here.
        single = torch.cat([graph({key: rows[i : i + 1] for key, rows in inputs.items()}) for i in range(10)])
        for given, expected in ((graph(inputs), actions), (single, actions[:10])):
            if (difference := agent.unlike(given, expected)) is not None:
                raise ExportError(f"{agent.path} as {kind} differs from the agent: {difference}.")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _write_onnx(policy: Policy, inputs: Inputs, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns of torch's own calls
        program = torch.onnx.export(
            policy,
            kwargs=policy.arguments(inputs),  # by name: the last positional dictionary would be all arguments
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=["action"],
            dynamic_shapes=policy.arguments(_any_batch(inputs)),
        )
    assert program is not None
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        given = {key: rows.numpy() for key, rows in inputs.items()}
        return torch.from_numpy(session.run(["action"], given)[0])

    return run


def _write_torch(policy: Policy, inputs: Inputs, path: Path) -> None:
    given, shapes = (tuple(policy.arguments(x).values()) for x in (inputs, _any_batch(inputs)))
    program = torch.export.export(policy, given, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _read_torch(policy: Policy, path: Path) -> Graph:
    module = torch.export.load(path).module()
    return lambda inputs: module(*policy.arguments(inputs).values())


def _any_batch(names: Iterable[str]) -> dict[str, dict[int, torch.export.Dim]]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in names}
