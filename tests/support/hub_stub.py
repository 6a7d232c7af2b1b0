"""A stand-in for the Hugging Face Hub on this machine: repositories with commits, large files, cuts and refusals.

It speaks as much of the Hub's API as huggingface_hub uses to fetch a snapshot and to send a folder.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import tempfile
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_stub"


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path):
    return path.endswith((".safetensors", ".npz", ".png"))


@dataclass
class Repository:
    """commits: {sha: {path: bytes}}; refs: {branch or tag: sha}."""

    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    gated: bool = False

    def commit(self, files, ref="main"):
        text = json.dumps([sorted((path, git_hash(content)) for path, content in files.items()), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha


class Hub:
    """One server for the process: huggingface_hub reads the address when it is first imported.

    log: (method, path, Range header or ""). cut: {path in a repository: bytes after which the connection ends, once}.
    wrong: {path: content that is sent in place of the right one}. failing: {part of a path: status that answers it}.
    """

    def __init__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.hub, self.server.daemon_threads = self, True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.clear()

    def clear(self):
        self.repositories, self.large, self.log = {}, {}, []
        self.cut, self.wrong, self.failing = {}, {}, {}

    def put(self, name, files, ref="main"):
        """A commit with these files; its hash."""
        return self.repositories.setdefault(name, Repository()).commit(files, ref)

    def seen(self, method, part):
        return [row for row in self.log if row[0] == method and part in row[1]]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code, status=404):
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def handle_one(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.log.append((self.command, path, self.headers.get("Range", "")))
        if status := next((status for part, status in hub.failing.items() if part in path), None):
            return self.answer(status, {"error": "at work on it"})
        open_to_all = self.command in ("GET", "HEAD", "PUT") or "validate-yaml" in path
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.missing("Unauthorized", 401)
        for pattern, work in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return work(self, hub, body, *found.groups())
        return self.missing("NotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def files(self, hub, name, revision):
        """(commit, files) or None, once the refusal is sent."""
        repository = hub.repositories.get(name)
        if repository is None:
            return self.missing("RepoNotFound")
        if repository.gated:
            return self.missing("GatedRepo", 403)
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            return self.missing("RevisionNotFound")
        return sha, repository.commits[sha]

    def info(self, hub, _, name, revision="main"):
        if found := self.files(hub, name, revision or "main"):
            self.answer(200, {"id": name, "sha": found[0], "siblings": [{"rfilename": path} for path in found[1]]})

    def tree(self, hub, _, name, revision):
        if found := self.files(hub, name, revision):
            rows = []
            for path, content in found[1].items():
                row = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
                if is_large(path):
                    row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
                rows.append(row)
            self.answer(200, rows)

    def resolve(self, hub, _, name, revision, path):
        if not (found := self.files(hub, name, revision)):
            return
        sha, files = found
        if path not in files:
            return self.missing("EntryNotFound")
        content = files[path]
        etag = hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "X-Linked-Size": str(len(content))}
        content = hub.wrong.get(path, content)
        if self.command == "HEAD":
            return self.answer(200, content, headers)
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if (length := hub.cut.pop(path, None)) is None:
            return self.answer(206 if start else 200, content[start:], headers)
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[:length])
        self.wfile.flush()
        self.close_connection = True

    def create(self, hub, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        there = name in hub.repositories
        hub.repositories.setdefault(name, Repository())
        if not there:
            hub.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            hub.visibility = asked.get("visibility")
        self.answer(409 if there else 200, {"url": f"{hub.endpoint}/{name}", "name": name, "id": name})

    def validate(self, hub, body):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, hub, body, name, revision):
        if found := self.files(hub, name, revision):
            rows = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if is_large(file["path"]) else "regular"
                old = found[1].get(file["path"])
                digest = None if old is None else hashlib.sha256(old).hexdigest() if mode == "lfs" else git_hash(old)
                rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": digest})
            self.answer(200, {"files": rows})

    def batch(self, hub, body, name):
        objects = []
        for one in json.loads(body)["objects"]:
            if one["oid"] not in hub.large:
                one["actions"] = {"upload": {"href": f"{hub.endpoint}/store/{one['oid']}"}}
            objects.append(one)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, hub, body, digest):
        hub.large[digest] = body
        self.answer(200)

    def commit(self, hub, body, name, revision):
        if not (found := self.files(hub, name, revision)):
            return
        files = dict(found[1])
        for line in body.splitlines():
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = hub.put(name, files, revision)
        self.answer(200, {"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"GET /api/models/{_NAME}/revision/(.+)", _Handler.info),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"POST /{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /store/(\w+)", _Handler.store),
    (rf"POST /api/models/{_NAME}/commit/(.+)", _Handler.commit),
]
_started = []


def start(cache, monkeypatch):
    """The process's stub, empty, and a cache of the test's own. Skips it where the extra [hub] is not installed."""
    if not _started:
        hub = Hub()
        os.environ |= {
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": tempfile.mkdtemp(prefix="hub-stub-"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        _started.append(hub)
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra [hub] is not installed")
    hub = _started[0]
    assert hub.endpoint == constants.ENDPOINT
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return hub
