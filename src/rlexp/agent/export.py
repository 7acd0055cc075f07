"""Export of a trained policy to ONNX or ``torch.export``, to run without this package and torchrl."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rlexp.agent import Agent, Policy
from rlexp.envs.actions import ACTION_MASK
from rlexp.errors import RlexpError
from rlexp.floats import float32_by_default
from rlexp.policies.recurrent import STATE

Inputs: TypeAlias = dict[str, Tensor]
Graph: TypeAlias = Callable[[Inputs], Sequence[Tensor]]
"""From inputs to actions and, of a recurrent policy, the state after the step."""

CHECKED = 1000


class ExportError(RlexpError):
    """The policy cannot be exported, or the export's actions differ from the policy's; no file was written."""


@float32_by_default()
def export_policy(agent: Agent, kind: Literal["onnx", "torch"], path: Path) -> Path:
    """Write the policy of an agent as one graph, from raw observations to the environment's actions.

    The graph takes ``observation`` ``[batch, *observation]`` in the type of the entry, for any batch size of at
    least one, and returns ``action`` ``[batch, *action]``; it includes normalisation and action bounds. Where there are
    several entries, it takes those that the actor reads, by their names, or for ``torch`` a dictionary of them; with
    action masks also ``action_mask`` ``[batch, values]`` bool. The graph of a recurrent policy also takes
    ``recurrent_state`` ``[batch, state_size]``, zeros where an episode begins, and returns ``next_recurrent_state``
    after ``action``. Before ``path`` appears, the file is loaded and compared with the agent's actions on 1,000
    observations of its environment, from consecutive steps.

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
    seen, actions, ends = agent.rollout(-(-CHECKED // agent.env.batch_size[0]))
    if policy.recurrent:
        seen[STATE] = torch.zeros(*ends.shape, policy.state_size)
    names = (*policy.shapes, *([STATE] if policy.recurrent else []), *([ACTION_MASK] if policy.masked else []))
    inputs = {key: seen[key] for key in names}
    write = {"onnx": _write_onnx, "torch": _write_torch}[kind]
    read: Callable[[Path], Graph] = _read_onnx if kind == "onnx" else partial(_read_torch, policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        aside = Path(folder, f"{path.name}.pt2")  # torch.export.save takes no other suffix
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's exporters warn of torch's own calls and modules
                write(policy, {key: rows.flatten(0, 1) for key, rows in inputs.items()}, aside)
        except OSError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"{agent.path} has a policy that {kind} cannot express: {reason}") from error
        graph = read(aside)
        # Single observations too: a graph with a constant batch dimension fails here.
        for part in ((slice(None), slice(None)), (slice(10), slice(1))):
            acted = _act(graph, {key: rows[part] for key, rows in inputs.items()}, ends[part])
            if (difference := agent.unlike(acted, actions[part].flatten(0, 1))) is not None:
                raise ExportError(f"{agent.path} as {kind} differs from the agent: {difference}.")
        aside.replace(path)
    return path


def _act(graph: Graph, inputs: Inputs, ends: Tensor) -> Tensor:
    """The actions ``[steps * num_envs, *action]`` of consecutive steps, a recurrent state carried through episodes."""
    actions = []
    state = inputs[STATE][0] if STATE in inputs else None
    for t, end in enumerate(ends):
        carried = {} if state is None else {STATE: state}
        action, *after = graph({key: rows[t] for key, rows in inputs.items()} | carried)
        actions.append(action)
        state = after[0].masked_fill(end[:, None], 0) if after else None
    return torch.cat(actions)


class _Recurrent(nn.Module):
    """A recurrent policy as a graph, whose caller carries the state."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, observation: Tensor | Inputs, recurrent_state: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.policy.step(observation, recurrent_state, action_mask)


def _module(policy: Policy) -> nn.Module:
    return _Recurrent(policy) if policy.recurrent else policy


def _arguments(policy: Policy, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `_module`, in its order."""
    observation, *mask = policy.arguments(inputs).items()
    state = [(STATE, inputs[STATE])] if policy.recurrent else []
    return dict([observation, *state, *mask])


def _write_onnx(policy: Policy, inputs: Inputs, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    program = torch.onnx.export(
        _module(policy),
        kwargs=_arguments(policy, inputs),  # by name: the last positional dictionary would be all arguments
        dynamo=True,
        verbose=False,
        input_names=list(inputs),
        output_names=["action", *([f"next_{STATE}"] if policy.recurrent else [])],
        dynamic_shapes=_arguments(policy, _any_batch(inputs)),
    )
    assert program is not None
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        given = {key: rows.numpy() for key, rows in inputs.items()}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    return run


def _write_torch(policy: Policy, inputs: Inputs, path: Path) -> None:
    given, shapes = (tuple(_arguments(policy, x).values()) for x in (inputs, _any_batch(inputs)))
    program = torch.export.export(_module(policy), given, dynamic_shapes=shapes)
    torch.export.save(program, path)


def _read_torch(policy: Policy, path: Path) -> Graph:
    module = torch.export.load(path).module()

    def run(inputs: Inputs) -> Sequence[Tensor]:
        outputs = module(*_arguments(policy, inputs).values())
        return outputs if policy.recurrent else [outputs]

    return run


def _any_batch(names: Iterable[str]) -> dict[str, dict[int, torch.export.Dim]]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in names}
