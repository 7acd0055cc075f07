"""As much of W&B's server as its client needs, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "0123456789" * 4


class Server(ThreadingHTTPServer):
    """As much of W&B's server as its client needs; records what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self.sweep = ""
        self.commands: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.received = 0  # frames of the run's summary
        self.links: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.manifest = b""
        self.files: dict[str, bytes] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "graphql" in self.path:
            self._answer(self._graphql(json.loads(content)))
        else:
            if "file_stream" in self.path:
                self.server.streams.append({"files": {}} | json.loads(content))
            self._answer({})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/manifest":
            self.server.manifest = content
        elif self.path.startswith("/artifact/"):
            self.server.files[self.path.removeprefix("/artifact/")] = content
        self._answer({})

    def do_GET(self) -> None:
        if self.path == "/manifest":
            self._send(self.server.manifest)
        elif self.path.startswith("/artifact/"):
            self._send(self.server.files[self.path.removeprefix("/artifact/")])
        else:
            self._answer({})

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables", {})
        if "UpsertBucket" in query or "upsertBucket" in query:
            self.server.runs.append(variables)
            project = {"id": "p", "name": "rlexp", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "r", "name": variables.get("name"), "displayName": "run", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "CreateRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/upload"
            files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        if "viewer" in query or "Viewer" in query:
            return {"data": {"viewer": {"id": "v", "entity": "me", "flags": "{}", "teams": {"edges": []}}}}
        if "SweepWithRuns" in query:
            sweep = {"id": "s", "name": "s", "config": self.server.sweep, "runs": {"edges": []}}
            return {"data": {"project": {"sweep": sweep}}}
        if "upsertView" in query:
            self.server.views.append(variables)
            return {"data": {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}}
        if "CreateAgent" in query:
            return {"data": {"createAgent": {"agent": {"id": "a"}}}}
        if "Heartbeat" in query:
            commands, self.server.commands = self.server.commands, []
            return {"data": {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}}
        if "ScriptableRunAlert" in query:
            self.server.alerts.append(variables)
            return {"data": {"notifyScriptableRunAlert": {"success": True}}}
        if "RunResumeStatus" in query and self.server.received:
            summary = json.dumps({"frames": self.server.received})
            counts = {"historyLineCount": 1, "eventsLineCount": 0, "logLineCount": 0}
            tails = {"historyTail": "[]", "eventsTail": "[]"}
            run = {"id": "r", "name": variables["name"], "displayName": "run", "summaryMetrics": summary,
                   "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'} | counts | tails  # fmt: skip
            return {"data": {"model": {"id": "p", "name": "rlexp", "entity": {"id": "e", "name": "me"}, "bucket": run}}}
        if "FetchOrgInfo" in query:
            organization = {"name": "Lab", "orgEntity": {"name": "lab"}}
            return {"data": {"entity": {"organization": organization, "user": None}}}
        if "rtifact" in query:
            return {"data": self._artifact(request.get("operationName") or query, variables)}
        return {"data": {}}

    def _artifact(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.server.server_port}"
        if "CreateArtifactFiles" in query:
            common: dict[str, Any] = {
                "storagePath": None,
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": "a"},
            }
            names = [file["name"] for file in variables["input"]["artifactFiles"]]
            files = [common | {"uploadUrl": f"{url}/artifact/{name}"} for name in names]
            return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}
        if "CreateArtifactManifest" in query:
            file = {"id": "f", "uploadUrl": f"{url}/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if "CreateArtifact" in query:
            self.server.artifacts.append(variables["input"])
            created = {"id": "a", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": created}}
        if "LinkArtifact" in query:
            self.server.links.append(variables["input"])
            return {"result": {"versionIndex": 0}}
        if "CommitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        if "ArtifactMembershipByName" in query:
            if not self.server.artifacts:
                return {"project": {"artifactCollectionMembership": None}}
            artifact = _artifact(variables["name"])
            member = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0, "aliases": [],
                      "artifactCollection": artifact["artifactSequence"], "artifact": artifact} | _DATES  # fmt: skip
            return {"project": {"artifactCollectionMembership": member}}
        if "ArtifactByID" in query:
            return {"artifact": _artifact(variables["id"])}
        if "FileUrls" in query:
            names = json.loads(self.server.manifest)["contents"]
            edges = [
                {"node": {"__typename": "File", "name": name, "directUrl": f"{url}/artifact/{name}"}} for name in names
            ]
            page = {"pageInfo": {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None}, "edges": edges}
            kept = {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}
            return {"project": {"artifactCollection": kept}}
        if "Manifest" in query:
            return {"artifact": {"currentManifest": {"file": {"directUrl": f"{url}/manifest"}}}}
        return {"project": {"artifact": None}}

    def _answer(self, values: dict[str, Any]) -> None:
        self._send(json.dumps(values).encode())

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


_DATES = {"createdAt": "2030-01-01T00:00:00Z"}


def _artifact(name: str) -> dict[str, Any]:
    """The artifact of a name such as ``x:best``, which is its id as well."""
    project = {"id": "p", "internalId": "1", "name": "rlexp", "entity": {"name": "me"}}
    kept = {"__typename": "ArtifactSequence", "name": name.partition(":")[0], "project": project}
    unset = dict.fromkeys(("description", "historyStep", "updatedAt"))
    artifact = {"__typename": "Artifact", "id": name, "artifactSequence": kept, "versionIndex": 0, "tags": [],
                "state": "COMMITTED", "artifactType": {"name": "model"}, "metadata": "{}", "aliases": [],
                "ttlDurationSeconds": -2, "ttlIsInherited": False, "size": 1, "digest": "d", "commitHash": "c",
                "fileCount": 1}  # fmt: skip
    return artifact | unset | _DATES


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def environment(port: int, home: Path) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY, "HOME": str(home)}
