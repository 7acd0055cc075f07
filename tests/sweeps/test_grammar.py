"""Every form of Hydra's sweep grammar is expanded to its values, or refused with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rlexp.config import ConfigError, Sources, expand_sweeps
from rlexp.experiment import load_config


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=3", ["3"]),
        ("seed=1,2", ["1", "2"]),
        ("seed=choice(1,2)", ["1", "2"]),
        ("seed=range(3)", ["0", "1", "2"]),
        ("seed=range(0,7,3)", ["0", "3", "6"]),
        ("seed=sort(3,1,2,reverse=true)", ["3", "2", "1"]),
        ("seed=int(1.0,2.5)", ["1", "2"]),
        ("optim.lr=float(range(1,3))", ["1.0", "2.0"]),
        ("seed=tag(quick,choice(1,2))", ["1", "2"]),
        ("policy.num_cells=[64],[64,64]", ["[64]", "[64,64]"]),
        ("env.kwargs={a:1},{a:2}", ["{a:1}", "{a:2}"]),
        ("env.name='x,y',z", ["'x,y'", "z"]),
        ("+seed=1,2", ["1", "2"]),
        ("optim=glob(adam*)", ["adam", "adamw"]),
        ("optim=glob([a*,s*],exclude=a*y)", ["adam", "adamw", "sgd"]),
    ],
)
def test_values(text: str, values: Sequence[str]) -> None:
    key = text.partition("=")[0]
    assert list(expand_sweeps([text])) == [[f"{key}={value}"] for value in values]


def test_shuffled_values_are_all_there() -> None:
    assert sorted(expand_sweeps(["seed=shuffle(range(20))"])) == sorted([f"seed={i}"] for i in range(20))


def test_combinations_and_options_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "adamant.yaml").write_text("# mine\n")
    jobs = list(expand_sweeps(["env=hopper", "optim=glob(adama*)", "seed=0,1"], Sources(str(tmp_path))))
    assert jobs == [["env=hopper", "optim=adamant", "seed=0"], ["env=hopper", "optim=adamant", "seed=1"]]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("optim.lr=interval(1e-5,1e-4)", "name them, as in optim.lr=0.1,0.2"),
        ("optim.lr=tag(log,interval(1,2))", "rlexp-search draws from ranges"),
        ("optim.lr=int(interval(1,2))", "name them"),
        ("optim=glob(nothing*)", "nothing matches"),
        ("optim.lr=glob(*)", "is no group of options"),
        ("seed=range(3,3)", "has no values"),
        ("seed=extend_list(1)", "cannot be read as key=value"),
    ],
)
def test_what_names_no_values_is_refused_with_the_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        expand_sweeps(["env=hopper", text])
    assert text.partition("=")[0] in str(raised.value)
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    "text", ["seed=1,2", "optim.lr=interval(0,1)", "env=glob(*)", "env=hopper,ant", "seed=range(3)"]
)
def test_a_single_run_takes_no_sweep(text: str) -> None:
    with pytest.raises(ConfigError):
        load_config([text])
