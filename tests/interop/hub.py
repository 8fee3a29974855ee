"""A fake Hugging Face Hub on loopback, written with the standard library only.

It serves repositories defined in Python well enough for the real `huggingface_hub` client to fill real caches
from it (`HF_ENDPOINT=http://127.0.0.1:PORT`): repo info, recursive trees, and `resolve` URLs with the headers that the
cache depends on. `Hub.hold` pauses the body of a file halfway; `Hub.bodies` counts the file bodies sent so far.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_oid(data):
    """Return git's blob hash of these bytes, which is the Hub's ETag of a file outside LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """The contents of a file. A Xet file is an LFS file that the Hub also serves under a Xet hash."""

    data: bytes
    lfs: bool = False
    xet: bool = False

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self):
        """The name of the blob in the cache."""
        return self.sha256 if self.lfs else git_oid(self.data)

    @property
    def xet_hash(self):
        """A stand-in for the real Xet hash, whose algorithm does not matter to the cache."""
        return hashlib.sha256(b"xet" + self.data).hexdigest() if self.xet else None

    def tree_entry(self, path):
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": git_oid(self.data)}
        if self.lfs:
            size = len(self.data)
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()
            entry["oid"] = git_oid(pointer)
            entry["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": len(pointer)}
        if self.xet:
            entry["xetHash"] = self.xet_hash
        return entry


@dataclass
class Repo:
    """A repository with its commits (files by path, by commit hash) and refs (commit hash by name)."""

    id: str
    kind: str = "model"
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)

    def commit(self, files, *refs):
        """Add a commit with exactly these files, point the refs at it, and return its hash."""
        commit = self.hash(files)
        self.commits[commit] = files
        self.refs.update(dict.fromkeys(refs, commit))
        return commit

    def hash(self, files):
        """Return the hash of the next commit, if it has these files."""
        listing = [self.kind, self.id, len(self.commits), sorted((path, file.etag) for path, file in files.items())]
        return hashlib.sha1(json.dumps(listing).encode()).hexdigest()

    def resolve(self, revision):
        """Return the commit for a ref, a full hash or a short hash, or None."""
        if revision in self.refs:
            return self.refs[revision]
        found = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return found[0] if len(found) == 1 else None


class Gate:
    """Holds a file body in flight: `reached` is set once half of it has been sent; `release` lets the rest through."""

    def __init__(self):
        self.reached = threading.Event()
        self._open = threading.Event()

    def release(self):
        self._open.set()

    def wait(self):
        self.reached.set()
        self._open.wait()


class Hub:
    """The server, a context manager."""

    def __init__(self, repos):
        self.repos = {(repo.kind, repo.id): repo for repo in repos}
        self.bodies = 0
        self._gates = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        for gate in self._gates.values():
            gate.release()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, file):
        """Pause every body of this file halfway until the returned gate is released."""
        return self._gates.setdefault(file.etag, Gate())

    def drop(self, file):
        """Release and remove the gate of a file."""
        self._gates.pop(file.etag).release()

    def gate(self, file):
        return self._gates.get(file.etag)

    def find(self, kind, parts):
        """Return the repo that a URL path names, and the rest of the path. Ids have one or two segments."""
        for length in (2, 1):
            repo = self.repos.get((kind, "/".join(parts[:length])))
            if repo:
                return repo, parts[length:]
        return None, parts


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        # Split before unquoting: a revision such as refs/pr/1 is one quoted segment.
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            kind, parts = parts[1].removesuffix("s"), parts[2:]
        else:
            kind = parts[0].removesuffix("s") if parts[0] in ("datasets", "spaces", "kernels") else "model"
            parts = parts if kind == "model" else parts[1:]
        repo, rest = self.hub.find(kind, parts)
        if repo is None:
            return self._error(404, "RepoNotFound")
        verb, revision, path = (rest + ["revision", "main"])[0], (rest + ["revision", "main"])[1], "/".join(rest[2:])
        commit = repo.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if verb == "resolve":
            return self._file(repo, commit, path)
        if verb == "tree":
            return self._json([file.tree_entry(path) for path, file in repo.commits[commit].items()])
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        return self._json({"id": repo.id, "sha": commit, "siblings": siblings})

    do_HEAD = do_GET

    def _file(self, repo, commit, path):
        file = repo.commits[commit].get(path)
        if file is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        size = len(file.data)
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(size)}
        if file.xet:
            headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": f"{self.hub.endpoint}/xet-token"}
        status, start, end = 200, 0, size
        requested = self.headers.get("Range", "")
        if requested.startswith("bytes="):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            status, start, end = 206, int(first), min(int(last) + 1, size) if last else size
            if start >= size:
                return self._error(416, "RangeNotSatisfiable")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        gate = self.hub.gate(file)
        if self.command == "GET":
            self.hub.bodies += 1
        self._send(status, headers, file.data[start:end], gate)

    def _json(self, value):
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status, code, headers=()):
        self._send(status, {"X-Error-Code": code, **dict(headers)}, b"")

    def _send(self, status, headers, body, gate=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if gate:
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            gate.wait()
            body = body[half:]
        self.wfile.write(body)

    def log_message(self, *_):
        """Log nothing, to keep the output of the suite readable."""
