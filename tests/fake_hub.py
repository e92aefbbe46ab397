"""A model hub on this machine, for the tests of `nfx.weights` and `nfx.model_card`: the hub's protocol as far as its
client uses it here.

It can move a branch, send other bytes for the same commit, want a token, not know a repository, and break off in the
middle of a file. What is uploaded becomes a commit. Every request is written down.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"  # kept as Git LFS, as on the hub


@dataclass
class Repository:
    """Files by commit, and the commit of each branch. `gated` is the token that may read or write it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: str | None = None
    private: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch; the new commit."""
        digest = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[digest] = dict(files)
        self.branches[branch] = digest
        return digest


@dataclass
class Hub:
    """`breaks`: connections that still break off, by path of the file, each after half of what it should send."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # bytes of each file's content
    announced: dict[str, int] = field(default_factory=dict)  # sizes that the list claims in place of the true ones
    uploaded: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, before they are committed
    writer: str = "right"  # the token that may make repositories

    def add(self, name: str, files: Mapping[str, bytes]) -> Repository:
        self.repositories[name] = Repository()
        self.repositories[name].commit(files)
        return self.repositories[name]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers at `endpoint` while the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_digest(content: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization", "").removeprefix("Bearer ") != self.hub.writer:
            return self._refuse(401, "")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                return self._json({"url": f"{self.hub.endpoint}/{name}"}, 409)
            self.hub.add(name, {}).private = asked.get("private", asked.get("visibility") == "private")
            return self._json({"url": f"{self.hub.endpoint}/{name}"})
        if batch := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            upload = {"upload": {"href": f"{self.hub.endpoint}/large/{batch[1]}"}}
            objects = [{**wanted, "actions": upload} for wanted in json.loads(body)["objects"]]
            return self._json({"transfer": "basic", "objects": objects})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        repository = self.hub.repositories.get(api[1]) if api else None
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if api[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            files = [{"path": name, "uploadMode": modes[name], "shouldIgnore": False, "oid": None} for name in names]
            return self._json({"files": files})
        added = {}
        for line in map(json.loads, body.decode().splitlines()):
            entry = line["value"]
            if line["key"] == "file":
                added[entry["path"]] = base64.b64decode(entry["content"])
            elif line["key"] == "lfsFile":
                added[entry["path"]] = self.hub.uploaded[entry["oid"]]
        commit = repository.commit({**repository.commits[repository.branches["main"]], **added})
        address = f"{self.hub.endpoint}/{api[1]}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        resolve = re.fullmatch(r"/(?:cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (resolve[1], resolve[2]) if resolve else ("", "")
        repository = self.hub.repositories.get(name)
        if repository is None:  # the hub does not tell strangers what there is
            return self._refuse(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
        if repository.gated not in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            known = "Authorization" in self.headers
            return self._refuse(403 if known else 401, "GatedRepo")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if api and api[2] == "revision":
            return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        if api:
            return self._json([self._listed(file, content) for file, content in files.items()])
        if resolve[3] not in files:
            return self._refuse(404, "EntryNotFound")
        return self._file(name, commit, resolve[3], files[resolve[3]], from_cdn=path.startswith("/cdn/"))

    def _listed(self, file: str, content: bytes) -> dict[str, object]:
        size = self.hub.announced.get(file, len(content))
        entry: dict[str, object] = {"type": "file", "path": file, "size": size, "oid": blob_digest(content)}
        if file.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return entry

    def _file(self, name: str, commit: str, file: str, content: bytes, from_cdn: bool) -> None:
        large = file.endswith(LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else blob_digest(content)
        if large and not from_cdn:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.endpoint}/cdn/{name}/resolve/{commit}/{file}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or (0, 0))[1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        if self.hub.breaks.get(file, 0) > 0:
            self.hub.breaks[file] -= 1
            rest = rest[: len(rest) // 2]
            self.close_connection = True
        self.hub.sent[file] = self.hub.sent.get(file, 0) + len(rest)
        self.wfile.write(rest)

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
