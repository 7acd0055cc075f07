"""The page of one run, and the charts that both kinds of pages draw."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import rows_of, run_command
from synthetic import config, curve, write_run

from rlexp.cli.report import report
from rlexp.config import ConfigError
from rlexp.report import load_runs, make_report, write_report
from rlexp.report.charts import Chart, Line, drawn
from rlexp.report.run_page import run_page
from rlexp.report.runs import ReportError


def page_of(folder: Path) -> str:
    (run,) = load_runs([folder])
    return run_page(run)


def values(page: str, title: str) -> list[list[float]]:
    """Frames and values of the first line of a chart."""
    chart = page.partition(f"<figcaption><b>{title}</b>")[2]
    found = re.search(r'data-values="([^"]*)"', chart)
    assert found is not None
    return [[float(number) for number in point.split()] for point in found[1].split(";")]


def test_the_page_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    done = run_command("rlexp-report", str(tiny_run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "table.csv").is_file()
    page = (tmp_path / "report" / "index.html").read_text()
    rows = rows_of(tiny_run)
    for title, metric in (
        ("Training reward (average)", "train/reward"),
        ("Max step count (training)", "train/step_count"),
        ("Return (test)", "eval/return"),
        ("Max step count (test)", "eval/step_count"),
        ("loss/objective", "loss/objective"),
    ):
        shown = np.array(values(page, title))
        wanted = np.array([[row["frames"], row[metric]] for row in rows if metric in row])
        np.testing.assert_allclose(shown, wanted, rtol=1e-5)
    cells = re.findall(r'<td class="name">([^<]*)</td>' * 3, page)
    assert ("total_frames", "1024", "102400") in cells
    assert ("seed", "7", "0") in cells
    assert not any(name == "loss.clip_epsilon" for name, _, _ in cells)
    commands = [shlex.split(html.unescape(command)) for command in re.findall(r"<pre>(.*)</pre>", page)]
    assert ["rlexp-train", f"resume={tiny_run}", "total_frames=2048"] in commands
    assert ["rlexp-export", f"checkpoint={tiny_run}/checkpoints/best"] in commands
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_a_run_that_was_killed_has_a_page_and_no_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "ended", config(), [1.0])
    out = f"out={tmp_path / 'report'}"
    assert report([str(tmp_path / "ended"), out]) == 0
    killed = write_run(tmp_path / "it's killed", config(), [1.0, 2.0], status=None)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"frames": 30')
    for unused in ("threshold=5", "threshold=null", "reference.test=[0,1]", "ignore=[optim.lr]"):
        with pytest.raises(ConfigError, match="no meaning for a single run that has not completed"):
            report([str(killed), out, unused])
    assert (tmp_path / "report" / "table.tex").exists()  # of the report before: nothing is written
    assert report([str(killed), out]) == 0
    left = {path.name for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert left == {"index.html", ".rlexp-report"}
    page = (tmp_path / "report" / "index.html").read_text()
    commands = [shlex.split(html.unescape(command)) for command in re.findall(r"<pre>(.*)</pre>", page)]
    assert commands[0] == ["rlexp-train", f"resume={killed}"]
    assert values(page, r"Return (test)") == [[1000, 1], [2000, 2]]
    assert "<dd>unfinished</dd>" in page


def test_a_run_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ReportError, match=r"metrics\.jsonl, line 1"):
        report([str(run), f"out={tmp_path / 'report'}"])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("metadata", ["", "[", '{"git": ' + '{"a": ' * 60 + "1" + "}" * 61])
def test_a_run_whose_origin_cannot_be_read_has_a_page(metadata: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (run / "metadata.json").write_text(metadata)
    page = page_of(run)
    assert "cannot be read:" in page
    assert [1000, 1] in values(page, r"Return (test)")


def test_a_row_whose_time_is_no_number_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    row = json.loads((run / "metrics.jsonl").read_text())
    (run / "metrics.jsonl").write_text(json.dumps(row | {"time/eval": "x"}) + "\n")
    with pytest.raises(ReportError, match="time/eval is no number"):
        page_of(run)


def test_the_newest_video_is_in_the_page_unless_it_is_large_or_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (tmp_path / "private").write_bytes(b"private")
    (run / "videos").mkdir()
    (run / "videos" / "z.mp4").symlink_to(tmp_path / "private")
    assert "<video" not in page_of(run)
    (run / "videos" / "1.mp4").write_bytes(b"video")
    assert f'src="data:video/mp4;base64,{base64.b64encode(b"video").decode()}"' in page_of(run)
    monkeypatch.setattr("rlexp.report.run_page._LARGEST_VIDEO", 3)
    assert "<video" not in (page := page_of(run))
    assert f"Too large for this page: {run}/videos/1.mp4" in page


def test_what_a_stranger_named_is_text_and_only_the_pages_script_runs(tmp_path: Path) -> None:
    hostile = "\"'></script><script>alert(1)</script>\x1b"
    settings = config() | {hostile: hostile}
    settings["env"]["name"] = hostile
    run = write_run(tmp_path / "run", settings, [1.0], status="failed")
    (run / "summary.json").write_text(json.dumps({"status": "failed", "error": hostile, "frames": 1000}))
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps(json.loads(line) | {hostile: 1.5, "text": hostile, "huge": 1e300}) + "\n"
            for line in (run / "metrics.jsonl").read_text().splitlines()
        )
    )
    (run / "metadata.json").write_text(json.dumps({"command": [hostile], "versions": {hostile: hostile}}))
    others = [
        write_run(tmp_path / f"other{i}", settings | {"seed": i % 2, "optim": {"lr": lr}}, [1.0, 2.0])
        for i, lr in enumerate((hostile, hostile, "b"))
    ]
    write_report(make_report(load_runs(others)), tmp_path / "report")
    for page in (page_of(run), (tmp_path / "report" / "index.html").read_text()):
        (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; " in page
        assert f"script-src 'sha256-{digest}'" in page
        assert page.count("<script") == 1
        assert "&lt;script&gt;alert(1)" in page
        assert "\x1b" not in page
        assert not re.findall(r"<[^>]*\son\w+=", page)


def test_no_command_of_the_page_trusts_what_a_stranger_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best").write_text("1")
    assert "--config-path" in page_of(run)
    settings = config() | {"callbacks": {"x": {"_target_": "posix.system", "command": "x"}}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    page = page_of(run)
    assert "rlexp-eval checkpoint=" in page
    assert "trust=" not in page
    assert "--config-path" not in page, "which reads all of it as the user's own"


def test_what_a_run_links_to_is_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), [1.0])
    (tmp_path / "hosts.yml").write_text("oauth_token: gho_private\n")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(tmp_path / "hosts.yml")
    with pytest.raises(ReportError, match=r"config\.yaml: is not a file"):
        page_of(run)


def test_a_sweeps_page_has_a_line_for_each_run_and_a_switch_for_each_group(tmp_path: Path) -> None:
    for seed in range(2):
        for i in range(8):
            settings = config(seed=seed, lr=1e-4 * (i + 1))
            write_run(tmp_path / "runs" / f"{i}-{seed}", settings, curve(settings, 5))
    write_report(make_report(load_runs([tmp_path / "runs"])), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    thin = re.findall(r'<polyline class="thin" [^>]*data-name="([^"]*)"', page)
    assert sorted(thin) == sorted(f"optim.lr={1e-4 * (i + 1)}, seed {s}, {i}-{s}" for i in range(8) for s in range(2))
    pressed = re.findall(r'<button type="button" data-group="(\d)" aria-pressed="(\w+)">', page)
    assert sorted(group for group, _ in pressed) == [str(i) for i in range(8)]
    off = {group for group, state in pressed if state == "false"}
    assert len(off) == 2
    assert {g for g, how in re.findall(r'<g data-group="(\d)" class="([^"]*)"', page) if "off" in how.split()} == off


def test_a_chart_places_values_on_its_axes() -> None:
    x, y = np.arange(1.0, 2001.0), np.linspace(-3.0, 5.0, 2000)
    found = drawn(Chart("title", "unit", [Line("a", x, y, low=y - 1, high=y + 1)], thresholds=[4.0]))
    points = np.array([[float(place) for place in point.split(",")] for point in found.paths[0].points.split()])
    shown = np.array([point.split() for point in found.paths[0].values.split(";")], dtype=float)
    assert (len(points), found.every) == (501, 4)
    assert shown[-1].tolist() == [2000.0, 5.0]
    ticks = np.array([[float(text), place] for place, text in found.y_ticks.items()])
    slope, start = np.polyfit(ticks[:, 0], ticks[:, 1], 1)
    np.testing.assert_allclose(points[:, 1], start + slope * shown[:, 1], atol=0.1)
    ((place, text),) = found.thresholds.items()
    assert place == pytest.approx(start + slope * 4.0)
    assert text == "threshold 4"
    assert not found.distant
    assert points[:, 1].max() <= found.bottom
    assert points[-1, 0] == pytest.approx(found.right)


def test_a_threshold_far_from_the_lines_does_not_flatten_them() -> None:
    lines = [Line("a", np.array([0.0, 1.0]), np.array([100.0, 200.0]))]
    near, far = (drawn(Chart("", "", lines, thresholds=[value])) for value in (299.0, 9100.0))
    assert [*near.thresholds.values()] == ["threshold 299"]
    assert not far.thresholds
    assert far.distant == "threshold 9,100 is not on this scale"
    assert far.paths[0].points == drawn(Chart("", "", lines)).paths[0].points


def test_one_point_and_equal_values_can_be_drawn() -> None:
    for y in ([0.0], [7.0, 7.0], [1e99, -1e99]):
        found = drawn(Chart("", "", [Line("", np.arange(float(len(y))), np.array(y))]))
        assert "nan" not in found.paths[0].points
        assert len(found.paths[0].points.split()) == len(found.paths[0].values.split(";")) == 2


def test_numbers_that_are_equal_but_for_rounding_are_a_flat_line() -> None:
    values = np.array([-818.49, np.nextafter(-818.49, 0), -818.49])
    (path,) = drawn(Chart("", "", [Line("", np.arange(3.0), values)])).paths
    assert len({point.split(",")[1] for point in path.points.split()}) == 1
