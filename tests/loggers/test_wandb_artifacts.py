"""Checkpoints as W&B artifacts, in a registry, and runs that are resumed from them; alerts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from commands import TINY, rows_of, run_command
from wandb_server import Server, environment, serving

from rlexp import load_config
from rlexp.config import ConfigError, check_targets
from rlexp.config.legacy import current_config
from rlexp.loggers.wandb import WandbSink
from rlexp.loggers.wandb_artifact import download_run

ONLINE = ["logger.mode=online", "logger.init_timeout=20", "logger.finish_timeout=20"]


def sent(server: Server) -> list[int]:
    """The frames of every row that the server got."""
    history = [stream["files"].get("wandb-history.jsonl", {}).get("content", []) for stream in server.streams]
    return [json.loads(row)["frames"] for rows in history for row in rows]


def test_a_run_is_resumed_from_its_artifact(tmp_path: Path) -> None:
    with serving() as server:
        online = environment(server.server_port, tmp_path)
        train = [*TINY, *ONLINE, "logger.artifacts=best", "logger.registry=wandb-registry-model/pendulum", "seed=3"]
        done = run_command("rlexp-train", *train, "hydra.run.dir=run", cwd=tmp_path, timeout=100, cold=False, **online)
        assert done.returncode == 0, done.stderr
        run = tmp_path / "run"
        best = (run / "checkpoints" / "best").read_text()
        assert {alias["alias"] for alias in server.artifacts[-1]["aliases"]} == {"latest", "best"}
        assert {artifact["artifactTypeName"] for artifact in server.artifacts} == {"model"}
        assert [(link["projectName"], link["artifactPortfolioName"], link["entityName"]) for link in server.links] == [
            ("wandb-registry-model", "pendulum", "lab")
        ], done.stderr
        shutil.copytree(run, tmp_path / "kept")
        shutil.rmtree(run)

        run_id = json.loads((tmp_path / "kept" / "metadata.json").read_text())["run_id"]
        server.received = 1024
        again = [f"resume=wandb:me/rlexp/{run_id}", "total_frames=1280", "hydra.run.dir=again"]
        done = run_command("rlexp-train", *again, cwd=tmp_path, timeout=100, cold=False, **online)
        assert done.returncode == 0, done.stderr
        assert [link["artifactID"] for link in server.links] == [f"{run_id}-checkpoint:best"] * 2
    frames = [row["frames"] for row in rows_of(tmp_path / "again")]
    assert frames == [256, 512, 768, 1024, 1280]
    until = int(best) // 256
    assert rows_of(tmp_path / "again")[:until] == rows_of(tmp_path / "kept")[:until]
    assert sorted(sent(server)) == [256, 512, 768, 1024, 1280], "no row is sent twice"
    assert json.loads((tmp_path / "again" / "metadata.json").read_text())["run_id"] == run_id


@pytest.mark.parametrize(
    "entries",
    [
        {"config.yaml": None, "../../escaped": None},
        {"/escaped": None},
        {"checkpoints/1/state.json": None, "sitecustomize.py": None},
        {"metrics.jsonl": "file:///etc/hostname"},
    ],
    ids=["above", "absolute", "code", "reference"],
)
def test_what_is_no_part_of_a_run_is_not_downloaded(
    entries: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {name: SimpleNamespace(ref=ref) for name, ref in entries.items()}
    artifact = SimpleNamespace(manifest=SimpleNamespace(entries=contents))
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(artifact=lambda *_, **__: artifact))
    with pytest.raises(ConfigError, match="no part of a run"):
        download_run("me/rlexp/x", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hostile_server_writes_nothing(tmp_path: Path) -> None:
    with serving() as server:
        online = environment(server.server_port, tmp_path)
        resume = ["resume=wandb:me/rlexp/x", "hydra.run.dir=a/run"]
        missing = run_command("rlexp-train", *resume, cwd=tmp_path, timeout=100, cold=False, **online)
        entry = {"digest": "XUFAKrxLKna5cZ2REBfFkg==", "size": 5, "birthArtifactID": "a"}
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        server.artifacts = [{}]
        server.manifest = json.dumps({"version": 1, "contents": {"../../escaped": entry}} | policy).encode()
        server.files = {"../../escaped": b"hello"}
        refused = run_command("rlexp-train", *resume, cwd=tmp_path, timeout=100, cold=False, **online)
    assert (missing.returncode, "Runs with logger.artifacts=best or all have one" in missing.stderr) == (2, True)
    assert (refused.returncode, "no part of a run: '../../escaped'" in refused.stderr) == (2, True)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped", "run")]


def test_a_download_needs_an_address_and_a_new_folder(tmp_path: Path) -> None:
    for address in ("x", "me/x", "me//x", "me/rlexp/x/y"):
        with pytest.raises(ConfigError, match="wandb:ENTITY/PROJECT/RUN"):
            download_run(address, tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        download_run("me/rlexp/x", tmp_path)


def test_a_download_needs_a_key(tmp_path: Path) -> None:
    done = run_command("rlexp-train", "resume=wandb:me/rlexp/x", cwd=tmp_path)
    assert (done.returncode, "needs a W&B API key" in done.stderr) == (2, True)


def test_a_run_that_fails_sends_an_alert(tmp_path: Path) -> None:
    with serving() as server:
        online = environment(server.server_port, tmp_path)
        failing = [*TINY, *ONLINE, "logger.alerts=true", "optim.lr=1e30"]
        done = run_command("rlexp-train", *failing, cwd=tmp_path, timeout=100, cold=False, **online)
    assert done.returncode == 1
    (alert,) = server.alerts
    assert "TrainingError" in json.dumps(alert)


def test_loggers_of_earlier_runs_keep_what_they_did() -> None:
    logger = {"_target_": "rlexp.loggers.WandbConfig"}
    several = {"_target_": "rlexp.loggers.SeveralConfig", "sinks": {"a": dict(logger)}}
    new = {"artifacts": "none", "registry": None, "alerts": False}
    assert current_config({"logger": dict(logger)})["logger"] == logger | new
    assert current_config({"logger": several})["logger"]["sinks"]["a"] == logger | new


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (["logger.registry=hopper", "logger.artifacts=best"], "such as wandb-registry-model/hopper"),
        (["logger.registry=wandb-registry-/hopper", "logger.artifacts=best"], "wandb-registry-REGISTRY/COLLECTION"),
        (["logger.registry=a/b/wandb-registry-x/y", "logger.artifacts=best"], "wandb-registry-REGISTRY/COLLECTION"),
        ([f"logger.registry=wandb-registry-{'x' * 114}/y", "logger.artifacts=best"], "wandb-registry-REGISTRY"),
        (["logger.registry=wandb-registry-model/hopper"], "logger.artifacts=best or all"),
        (["logger.registry=wandb-registry-model/hopper", "logger.artifacts=all", "logger.mode=offline"], "server"),
    ],
    ids=["no registry", "empty", "deep", "long", "no artifacts", "offline"],
)
def test_what_cannot_be_linked_is_refused_before_training(given: list[str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        check_targets(load_config(given))


@pytest.mark.parametrize("collection", ["wandb-registry-model/hopper", "lab/wandb-registry-my models/a b"])
def test_collections_of_registries_are_taken(collection: str) -> None:
    check_targets(load_config([f"logger.registry='{collection}'", "logger.artifacts=best"]))


def test_a_registry_that_takes_nothing_spoils_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished = []
    run = SimpleNamespace(offline=True, summary={}, finish=lambda **given: finished.append(given), dir=str(tmp_path))
    sink = WandbSink(run, set(), 0.0, "best", "wandb-registry-model/x", 1.0, alerts=False)
    sink.close({"status": "completed"})
    assert "did not link the best checkpoint to wandb-registry-model/x: it logged offline" in caplog.text
    assert finished == [{"exit_code": 0}]
