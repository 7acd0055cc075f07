"""Whatever W&B's server does, training goes on, ends in time, and ``metrics.jsonl`` has every row."""

from __future__ import annotations

import itertools
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wandb
import yaml
from commands import TINY, clean_environment, complete, rows_of, run_command
from readers import wandb_rows
from wandb_server import KEY, Server, environment, serving

from rlexp import load_config
from rlexp.loggers.wandb import group_of

ONLINE = [*TINY, "hydra.run.dir=run", "logger.mode=online", "logger.init_timeout=20", "logger.finish_timeout=4"]
UNHEARD = [*ONLINE, "logger.init_timeout=1", "logger.finish_timeout=1"]


def check(tmp_path: Path, logged: str) -> None:
    rows = rows_of(tmp_path / "run")
    assert [row["frames"] for row in rows] == [256, 512, 768, 1024]
    assert logged in (tmp_path / "run" / "train.log").read_text()
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def check_offline(tmp_path: Path) -> None:
    check(tmp_path, "logging offline")
    (offline,) = (tmp_path / "run").glob("wandb/offline-run-*")
    assert [int(row["frames"]) for row in wandb_rows(offline)] == [256, 512, 768, 1024]


def test_a_server_gets_every_row_and_a_resumed_run_its_id(tmp_path: Path) -> None:
    with serving() as server:
        complete(ONLINE, tmp_path, **environment(server.server_port, tmp_path))
        server.received = 768  # the last row of the first process did not arrive
        complete(["resume=run", "total_frames=1280"], tmp_path, **environment(server.server_port, tmp_path))
    history = [stream["files"].get("wandb-history.jsonl", {}).get("content", []) for stream in server.streams]
    assert [json.loads(row)["frames"] for rows in history for row in rows] == [256, 512, 768, 1024, 1024, 1280]
    run_id = json.loads((tmp_path / "run" / "metadata.json").read_text())["run_id"]
    assert {run.get("name") for run in server.runs} == {run_id}
    described = {(run["groupName"].rpartition("-")[0], run["jobType"], *run["tags"])
                 for run in server.runs if run["groupName"]}  # fmt: skip
    assert described == {("inverted_double_pendulum", "train", "inverted_double_pendulum")}


def test_seeds_share_a_group_and_other_settings_do_not() -> None:
    def group(*overrides: str) -> str:
        return group_of(load_config(overrides).to_dict())

    assert len({group(same) for same in ("seed=0", "seed=1", "threads=1", "logger=none", "env.num_workers=2")}) == 1
    others = [group(change) for change in ("env=hopper", "loss.clip_epsilon=0.1", "env/transforms=none")]
    assert len({group(), *others}) == 4
    assert others[0].startswith("hopper-")


SWEEP = Path(__file__).parents[2] / "scripts" / "wandb_sweep.yaml"


def test_an_agent_of_a_sweep_runs_rlexp_train(tmp_path: Path) -> None:
    """W&B's own agent with the shipped sweep; it starts processes of its own, which takes a while."""
    sweep = yaml.safe_load(SWEEP.read_text())
    for name, parameter in sweep["parameters"].items():
        sweep["parameters"][name] = {"value": parameter.get("value", parameter.get("values", [None])[0])}
    tiny = dict(setting.split("=") for setting in [*TINY, "hydra.run.dir=run"])
    with serving() as server:
        server.sweep = SWEEP.read_text()
        server.commands = [
            {
                "type": "run",
                "run_id": "named",
                "program": sweep["program"],
                "args": sweep["parameters"] | {k: {"value": v} for k, v in tiny.items()},
            }
        ]
        online = environment(server.server_port, tmp_path)
        online["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_command(
            "wandb", "agent", "me/rlexp/s", "--count", "1", cwd=tmp_path, timeout=100, cold=False, **online
        )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["optim"]["lr"], config["policy"]["num_cells"]) == (3e-4, [64, 64])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    assert json.loads((tmp_path / "run" / "metadata.json").read_text())["run_id"] == "named"
    assert {run["name"] for run in server.runs} == {"named"}
    assert server.runs[0]["sweep"] == "s"


def test_a_workspace_is_saved_in_the_runs_project(tiny_run: Path, tmp_path: Path) -> None:
    with serving() as server:
        online = environment(server.server_port, tmp_path)
        done = run_command(
            "rlexp-report", str(tiny_run), "--wandb-workspace=online", cwd=tmp_path, timeout=100, cold=False, **online
        )
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("me", "rlexp")
    written = json.loads((tmp_path / "report" / "wandb_workspace.json").read_text())
    assert json.loads(view["spec"]) == written["spec"]
    assert f"127.0.0.1:{server.server_port}/me/rlexp?nw=" in done.stdout


def test_every_parameter_of_the_shipped_sweep_is_a_setting() -> None:
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    choices = [[f"{name}={value}" for value in p.get("values", [p.get("value")])] for name, p in parameters.items()]
    for overrides in itertools.product(*choices):
        load_config(overrides)


def test_refused(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    complete(UNHEARD, tmp_path, **environment(port, tmp_path))
    assert time.monotonic() - start < 60
    check_offline(tmp_path)


def test_black_hole(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as hole:  # takes connections and never answers
        start = time.monotonic()
        complete(UNHEARD, tmp_path, **environment(hole.getsockname()[1], tmp_path))
    assert time.monotonic() - start < 60
    check_offline(tmp_path)


def test_nothing_of_wandbs_own_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its telemetry retries for twenty seconds at the end of a process whose server does not answer."""
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    asked: list[bool] = []
    monkeypatch.setattr(wandb, "init", lambda **_: asked.append(wandb.env.error_reporting_enabled()))
    config = load_config([*TINY, "logger=wandb", "logger.mode=offline"])
    config.logger.open(tmp_path, config.to_dict(), "00000000", 0)
    assert asked == [False]


def test_server_dies_in_mid_run(tmp_path: Path) -> None:
    with serving() as server:
        threading.Thread(target=_die_after_first_row, args=(server, tmp_path / "run"), daemon=True).start()
        start = time.monotonic()
        complete([*ONLINE, "total_frames=1024"], tmp_path, **environment(server.server_port, tmp_path))
    assert server.runs
    assert time.monotonic() - start < 60
    check(tmp_path, "wandb sync")
    assert "logging offline" not in (tmp_path / "run" / "train.log").read_text(), "it began online"


def _die_after_first_row(server: Server, run: Path) -> None:
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        time.sleep(0.001)
    server.socket.close()
    server.shutdown()


def test_without_a_key_nothing_is_asked(tmp_path: Path) -> None:
    complete([*ONLINE, "total_frames=256"], tmp_path)
    assert "no API key is configured" in (tmp_path / "run" / "train.log").read_text()


def test_without_a_key_nothing_is_asked_on_a_terminal(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "rlexp-train"), *ONLINE, "total_frames=256"]
    main, child = pty.openpty()
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_environment(tmp_path), stdin=child, stdout=child, stderr=child,
            timeout=100, check=False,
        )  # fmt: skip
    finally:
        os.close(child)
        os.close(main)
    assert done.returncode == 0
    assert "no API key is configured" in (tmp_path / "run" / "train.log").read_text()


def test_a_malformed_key_leaves_the_run_offline(tmp_path: Path) -> None:
    complete([*TINY, "hydra.run.dir=run"], tmp_path, WANDB_API_KEY="too-short", WANDB_MODE="")
    assert "W&B refuses the API key that is configured" in (tmp_path / "run" / "train.log").read_text()
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*"))) == 1
