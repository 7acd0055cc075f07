"""examples/first_run.ipynb runs from top to bottom, on a small budget."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import only_run, rows_of
from notebooks import run_notebook

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"
SHORT = {"40_960": "2_048", "10_240": "1_024", "interval=2_048": "interval=5_120", "episodes=50": "episodes=2"}


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    code, printed = run_notebook(NOTEBOOK, tmp_path, SHORT)
    assert code == 0, printed
    run = only_run(tmp_path)
    rows = rows_of(run)
    assert [row["frames"] for row in rows] == [1024 * i for i in range(1, 4)]
    assert "Did you mean cartpole?" in printed
    assert re.search(r"return of one episode: \d+\.0", printed)
    assert "completed after 3072 frames" in printed
    assert len(list(run.glob("videos/*.mp4"))) == 1


def test_it_holds_no_results() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
