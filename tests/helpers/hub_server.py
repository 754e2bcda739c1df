"""Stand-in for the Hugging Face hub on this machine: repositories in memory, behind a part of its HTTP interface."""

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
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a-token-of-the-tests-1234"


@dataclass
class Hub:
    """A running stand-in.

    Attributes:
        url: its address, for HF_ENDPOINT.
        repos: id -> file -> content.
        private: ids of repositories that were created as private ones.
        objects: large files by SHA-256, as uploaded before a commit.
        requests: methods and paths.
        problem: status and body of every answer, if it is to fail.
    """

    url: str
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    problem: tuple[int, bytes] | None = None

    def commit(self, repo: str) -> str:
        """Return a checksum of the content in place of a commit's id."""
        content = {name: hashlib.sha1(data).hexdigest() for name, data in self.repos[repo].items()}
        return hashlib.sha1(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        path = self._path()
        if self.hub.problem is not None:
            return self._send(*self.hub.problem)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._send(401, b'{"error": "Invalid username or password."}')
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo in self.hub.repos:
                return self._json(
                    {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}, 409
                )
            self.hub.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.hub.private.add(repo)
            return self._json({"url": f"{self.hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self._json({})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular"} for f in files]
            return self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if path.endswith("/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.url}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            return self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        return self._json({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        content = self._body()
        assert self._path() == f"/upload/{hashlib.sha256(content).hexdigest()}"
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def do_GET(self) -> None:
        path = self._path()
        if self.hub.problem is not None:
            return self._send(*self.hub.problem)
        if path.startswith("/api/models/"):
            repo, _, rest = path.removeprefix("/api/models/").partition("/tree/")
            repo = repo.partition("/revision/")[0]
            if repo not in self.hub.repos:
                return self._missing()
            if rest:
                return self._json([self._entry(name, data) for name, data in self.hub.repos[repo].items()])
            files = [{"rfilename": name} for name in self.hub.repos[repo]]
            return self._json({"id": repo, "sha": self.hub.commit(repo), "siblings": files})
        repo, _, place = path.removeprefix("/").partition("/resolve/")
        content = self.hub.repos.get(repo, {}).get(place.partition("/")[2])
        if content is None:
            return self._missing()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit(repo)}
        return self._send(200, content, headers)

    do_HEAD = do_GET

    def _commit(self, repo: str, body: bytes) -> None:
        files = self.hub.repos[repo]
        for line in body.decode().splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_id}
        if _is_large(name):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _missing(self) -> None:
        self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub."""
    handler = type("Handler", (_Handler,), {})
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = hub = Hub(f"http://127.0.0.1:{listener.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
