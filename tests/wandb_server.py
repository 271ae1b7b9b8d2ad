"""As much of W&B's server as its client needs in tests: it answers GraphQL by the operation's name, and keeps what it was sent."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
KEY = "0123456789abcdef" * 2 + "canary00"


class WandbServer:
    """The address of a running server, what it answers, and what it was sent.

    Attributes:
        url: for WANDB_BASE_URL.
        answers: operation to `data` of the answer, or a function of the variables that gives it.
        operations: (operation, variables), in order.
        streams: path to the lines of history that were sent there.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.streams: dict[str, list[dict[str, Any]]] = {}
        self.answers: dict[str, Any] = {
            "Viewer": {"viewer": VIEWER},
            "GetDefaultEntity": {"viewer": VIEWER},
            "RunResumeStatus": {"model": None},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "UpsertBucket": _upserted,
        }

    def environment(self) -> dict[str, str]:
        """Of a process that is to talk to it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What a request is answered."""
        if path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.streams.setdefault(path, []).extend(map(json.loads, sent))
            return {}
        if path != "/graphql":
            return {}
        request = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name, variables = found[1] if found else "", request.get("variables") or {}
        self.operations.append((name, variables))
        if name not in self.answers:
            return {"errors": [{"message": f"{name} is not here"}]}
        answer = self.answers[name]
        return {"data": answer(variables) if callable(answer) else answer}


def run_node(name: str, group: str, config: dict[str, Any], summary: dict[str, Any], **other: Any) -> dict[str, Any]:
    """A run as the server describes it."""
    return {
        "id": name,
        "projectId": "1",
        "name": name.replace("/", "-"),
        "displayName": name,
        "group": group,
        "state": "finished",
        "tags": [],
        "sweepName": None,
        "jobType": None,
        "commit": "0123456789abcdef",
        "readOnly": False,
        "createdAt": "2026-11-28T00:00:00",
        "heartbeatAt": "2026-11-28T00:00:00",
        "description": None,
        "notes": None,
        "systemMetrics": "{}",
        "historyLineCount": 2,
        "historyKeys": {"keys": {}, "lastStep": 2},
        "user": {"name": "me", "username": "me"},
        "config": json.dumps({key: {"value": value} for key, value in config.items()}),
        "summaryMetrics": json.dumps(summary),
        **other,
    }


def pages_of(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a question for a project's runs."""
    edges = [{"node": node, "cursor": node["id"]} for node in nodes]
    runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
    return {"project": {"internalId": "1", "runCount": len(nodes), "readOnly": False, "runs": runs}}


def _upserted(variables: dict[str, Any]) -> dict[str, Any]:
    project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
    bucket = {"id": variables["name"], "name": variables["name"], "displayName": variables["displayName"]}
    bucket |= {"description": None, "config": None, "sweepName": None, "historyLineCount": 0, "project": project}
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server on this machine while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            content = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = WandbServer(f"http://127.0.0.1:{listening.server_port}")
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
