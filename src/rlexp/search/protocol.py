"""The protocol of a search: what was tried, on what, and what the winner's numbers rest on, as Markdown."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from optuna.trial import FrozenTrial

from rlexp.report.tables import NONE, Table, interval, number, to_markdown
from rlexp.runs.rundir import versions
from rlexp.search.config import CandidatesConfig, plain
from rlexp.search.confirmation import Confirmed
from rlexp.search.folder import SearchPlan, overrides_of, state_of
from rlexp.text import printable


def protocol(
    plan: SearchPlan, trials: Sequence[FrozenTrial], confirmed: Sequence[Confirmed], winner: FrozenTrial
) -> str:
    """The protocol of a search that has ended, without dates: the same search has the same.

    Args:
        plan: what was searched.
        trials: all of them.
        confirmed: those that were trained again, best first.
        winner: one of these, or of ``trials`` where none was trained again.
    """
    parts = [
        "# Protocol of a search",
        f"`{printable(shlex.join(['rlexp-search', *plan.command]))}`",
        *_design(plan, trials, confirmed),
        "## Winner",
        _winner(plan, confirmed, winner),
        f"`{printable(shlex.join(overrides_of(winner.params)))}`",
    ]
    if confirmed:
        parts += ["## Confirmed", to_markdown(_confirmed_table(plan, confirmed))]
    parts += ["## Space", to_markdown(_space_table(plan)), "## Trials", to_markdown(_trials_table(plan, trials))]
    used = versions() | {"optuna": version("optuna")}
    parts += ["## Versions", ", ".join(f"{name} {of}" for name, of in used.items() if of is not None)]
    return "\n\n".join(parts) + "\n"


def _design(plan: SearchPlan, trials: Sequence[FrozenTrial], confirmed: Sequence[Confirmed]) -> list[str]:
    settings = plan.settings
    scaled = any(task.random is not None for task in settings.scored_on.values())
    scale = "(return - random) / (reference - random)" if scaled else "the return"
    counts = Counter(state_of(trial) for trial in trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    pruning = f"after {settings.startup} trials, from {settings.warmup:.0%} of a run" if settings.prune else "none"
    before = len(confirmed) - settings.confirm
    earlier = f" and {before} that were so before the search was extended" if before > 0 else ""
    best = f"the best {min(len(confirmed), settings.confirm)}{earlier}"
    again = f"{best} on seeds {_seeds(settings.fresh_seeds)}" if confirmed else NONE
    lines = [
        f"- Score: mean over tasks and seeds of {scale}, of the final evaluation's mean return.",
        f"- Screening: {len(trials)} trials ({states}) on seeds {_seeds(settings.screening_seeds)}.",
        f"- Confirmation: {again}.",
        f"- Sampler: Optuna's TPE, seed {settings.seed}, random for {settings.startup} trials.",
        f"- Median pruning: {pruning}.",
    ]
    return ["\n".join(lines), "## Tasks", to_markdown(_tasks_table(plan))]


def _winner(plan: SearchPlan, confirmed: Sequence[Confirmed], winner: FrozenTrial) -> str:
    if not confirmed or confirmed[0].score is None:
        score = number(winner.value)
        return f"Trial {winner.number}: {score}, which is biased upwards: it is the highest of all trials' scores."
    score = interval(confirmed[0].score, plan.settings.confirm_seeds)
    return (
        f"Trial {winner.number}: {score} on the fresh seeds, where it is the best of {len(confirmed)}. "
        "The interval is a 95% percentile bootstrap over seeds, within each task."
    )


def _tasks_table(plan: SearchPlan) -> Table:
    rows = []
    for name, task in plan.settings.scored_on.items():
        composed = plan.load([*plan.overrides, *task.overrides]).values
        frames = "searched" if "total_frames" in plan.settings.space else f"{composed['total_frames']:,}"
        ends = [NONE if end is None else number(end) for end in (task.random, task.reference)]
        rows.append((name or str(composed["env"]["name"]), shlex.join(task.overrides) or NONE, *ends, frames))
    return Table(("task", "overrides", "random", "reference", "frames a run"), tuple(rows), names=2)


def _confirmed_table(plan: SearchPlan, confirmed: Sequence[Confirmed]) -> Table:
    """One row per trial: both scores, and each seed's return on every task."""
    names = list(plan.settings.scored_on)
    rows = []
    for one in confirmed:
        score = one.error or NONE if one.score is None else interval(one.score, plan.settings.confirm_seeds)
        returns = (", ".join(map(number, one.returns.get(name, ()))) or NONE for name in names)
        rows.append((str(one.trial.number), number(one.trial.value), score, *returns))
    heads = (f"returns{f', {name}' if name else ''}" for name in names)
    return Table(("trial", "screening", "confirmation", *heads), tuple(rows))


def _space_table(plan: SearchPlan) -> Table:
    return Table(("setting", "values"), tuple((key, _values(of)) for key, of in plan.settings.space.items()), names=2)


def _values(candidates: CandidatesConfig) -> str:
    if candidates.choices is not None:
        return ", ".join(json.dumps(plain(choice)) for choice in candidates.choices)
    return f"{candidates.low} to {candidates.high}{', logarithmic' if candidates.log else ''}"


def _trials_table(plan: SearchPlan, trials: Sequence[FrozenTrial]) -> Table:
    keys = list(plan.settings.space)
    rows = tuple(
        (
            str(trial.number),
            state_of(trial),
            number(trial.value) if state_of(trial) == "completed" else NONE,
            *(_shown(trial.params.get(key)) for key in keys),
        )
        for trial in trials
    )
    return Table(("trial", "state", "score", *keys), rows, names=2)


def _shown(value: object) -> str:
    return NONE if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _seeds(seeds: range) -> str:
    return ", ".join(map(str, seeds))
