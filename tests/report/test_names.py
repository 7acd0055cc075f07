"""Text from a run reaches the terminal, the page, CSV and LaTeX as text, whatever is in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import config, write_run

from rlexp.cli.report import report
from rlexp.plots import label, new_axes, to_png
from rlexp.text import csv_cell, printable

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """Two runs whose names hold what a terminal, a browser, a spreadsheet or LaTeX would obey."""
    for seed, gamma in ((0, "=HYPERLINK(1)"), (1, "@SUM(1)"), (2, "-0.5")):
        values = config(seed=seed)
        values["env"]["name"] = f"{ESCAPES}{SCRIPT}\n=cmd"
        values["loss"] |= {"gamma": gamma, "note": rf"\input{{x}} ${gamma}$ %"}
        write_run(tmp_path / "runs" / f"a=b {seed}", values, [1.0 + seed, 2.0])
    broken = write_run(tmp_path / "runs" / "failed", config(seed=3), [1.0], status="failed")
    (broken / "summary.json").write_text(json.dumps({"status": "failed", "error": f"{ESCAPES}{SCRIPT}"}))
    return tmp_path


def test_names_are_only_text(
    strangers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(strangers)
    assert report(["runs", "out=report"]) == 0
    assert report(["runs", "--watch"]) == 0
    said = capsys.readouterr()
    assert "\\x1b]0;title\\x07" in said.out
    assert set(said.out + said.err) & set("\x1b\x07\x9b\u202e") == set()

    page = (strangers / "report" / "index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1, "the page's own"
    assert set(page) & set("\x1b\x07\x9b\u202e") == set()

    tex = (strangers / "report" / "table.tex").read_text()
    assert r"\textbackslash{}input\{x\}" in tex
    assert r"\input" not in tex
    assert [line.endswith(r" \\") for line in tex.splitlines()].count(True) == 1 + 3, "a name begins no row of its own"

    with (strangers / "report" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["setting:loss.gamma"] for row in rows} == {"'=HYPERLINK(1)", "'@SUM(1)", "-0.5", "0.99"}
    with (strangers / "report" / "runs.csv").open(newline="") as file:
        assert not {cell[:1] for row in csv.reader(file) for cell in row} & set("=+@\t\r")
    for name in ("table.csv", "runs.csv"):
        assert not {line[:1] for line in (strangers / "report" / name).read_text().splitlines()} & set("=+@")


def test_one_folder_whose_name_has_an_equals_sign(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(strangers)
    assert report(["runs/a=b 0", "out=report"]) == 0
    monkeypatch.chdir(strangers / "runs")
    assert report(["a=b 0", "a=b 1/", "./a=b 2", "out=report"]) == 0
    with Path("report/runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


@given(st.text())
def test_printable_text_is_left_alone_and_the_rest_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_no_formulas(number: float) -> None:
    assert csv_cell(number) == number
    assert csv_cell(str(number)) == str(number)


@given(st.text("$\\_^{}ab \n", max_size=30))
def test_any_text_can_be_a_label(text: str) -> None:
    _, axes = new_axes("x", "y", "z")
    title = axes.set_title(label(text))
    shown, parsed = title._preprocess_math(title.get_text())  # type: ignore[attr-defined]
    assert (shown, bool(parsed)) == (text, False)


def test_names_that_are_too_long_for_a_file_or_a_plot(tmp_path: Path) -> None:
    values = config()
    values["env"]["name"] = "n" * 5000
    write_run(tmp_path / "run", values, [1.0])
    assert report([str(tmp_path / "run"), f"out={tmp_path / 'report'}"]) == 0
    assert to_png(new_axes("n" * 5000, "", "")[0]).startswith(b"\x89PNG")
