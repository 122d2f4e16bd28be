"""A hub on this machine: what huggingface_hub asks of one to make a repository and upload to it, and nothing else.

It behaves as the real one where it matters: a file counts as there only once it is committed; an object is checked against the
sha256 that it was announced with; what is there already is not asked for again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", "tokenizer.json")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Names of those that are stored apart."""


@dataclass
class Hub:
    """What it has, was told, and shall answer."""

    url: str = ""
    token: str = "hf_of_the_test_0123456789abcdef"  # noqa: S105
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded apart, by its sha256."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and content of every request."""
    fails: dict[str, list[int]] = field(default_factory=dict)
    """Part of a path -> statuses with which the next requests for it fail."""
    ignored: set[str] = field(default_factory=set)
    """Files that a .gitignore there leaves out."""

    def said(self, method: str, part: str) -> list[Any]:
        return [content for verb, path, content in self.asked if verb == method and part in path]


@contextmanager
def a_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (Answers,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.serve("GET", None)

    def do_POST(self) -> None:
        raw = self.content()
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()] if b"\n" in raw.strip() else []
        self.serve("POST", lines or json.loads(raw or b"null"))

    def do_PUT(self) -> None:
        self.serve("PUT", self.content())

    def content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def serve(self, method: str, content: Any) -> None:
        self.hub.asked.append((method, self.path, content))
        for part, statuses in self.hub.fails.items():
            if part in self.path and statuses:
                return self.answer(statuses.pop(0), {"error": f"as it was told, with {self.headers['Authorization']}"})
        if method != "PUT" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(content)
        if path.startswith("/upload/"):
            return self.take(path.rpartition("/")[2], content)
        repo = next((name for name in self.hub.repositories if name in path), None)
        if repo is None:
            return self.answer(404, {"error": "Repository not found"}, code="RepoNotFound")
        return self.of_repository(repo, path.partition(repo)[2], content)

    def create(self, content: Any) -> None:
        name = f"{content['organization']}/{content['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        private = content.get("private", content.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private, {".gitattributes": b""})
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def take(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(400, {"error": "another sha256 than was announced"})
        self.hub.objects[oid] = content
        return self.answer(200, {})

    def of_repository(self, name: str, rest: str, content: Any) -> None:
        repository = self.hub.repositories[name]
        if rest.startswith("/preupload/"):
            kinds = {one["path"]: "lfs" if one["path"].endswith(LARGE) else "regular" for one in content["files"]}
            files = [
                {"path": path, "uploadMode": kind, "shouldIgnore": path in self.hub.ignored}
                for path, kind in kinds.items()
            ]
            return self.answer(200, {"files": files})
        if rest == ".git/info/lfs/objects/batch":
            return self.answer(200, {"transfer": "basic", "objects": [self.place(one) for one in content["objects"]]})
        if rest.startswith("/commit/"):
            for line in content:
                self.commit(repository, line["key"], line["value"])
            return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer(200, self.about(name, repository))

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.objects:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}}

    def commit(self, repository: Repository, key: str, value: dict[str, Any]) -> None:
        if key == "file":
            repository.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            repository.files[value["path"]] = self.hub.objects[value["oid"]]
            repository.large.add(value["path"])
        elif key == "deletedFile":
            del repository.files[value["path"]]

    def about(self, name: str, repository: Repository) -> dict[str, Any]:
        siblings = []
        for path, content in repository.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            one: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if path in repository.large:
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(one)
        return {"id": name, "private": repository.private, "sha": COMMIT, "siblings": siblings, "tags": []}

    def answer(self, status: int, content: Any, code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)
