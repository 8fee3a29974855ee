"""A cache and the bucket that it was pushed to, both computed from numbers."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass

REVISIONS, FILES = 10, 10
# Files of a revision that are stored in git: small, and named by a git hash. The others are large, and named by SHA-256.
GIT_FILES = {0: "README.md", 1: "config.json", 2: "tokenizer_config.json"}
SMALL, LARGE = 700, 20_000
MONTH = 30 * 24 * 3600
# By the clock of the store, everything is this old.
WRITTEN = 1_767_225_600


@dataclass(frozen=True)
class World:
    """`repos` repos of 10 revisions of 10 files, none of which share a blob, and a bucket of `keys` keys."""

    repos: int
    keys: int

    @property
    def title(self):
        revisions = self.repos * REVISIONS
        return f"{self.repos:,} repos, {revisions:,} revisions, {revisions * FILES:,} files; {self.keys:,} keys"

    def revisions(self):
        """Yields the number of the repo, the commit, and the path, blob and size of each file."""
        for repo in range(self.repos):
            for number in range(REVISIONS):
                yield repo, commit(repo, number), [_file(repo, number, index) for index in range(FILES)]

    def objects(self):
        """Returns the bucket: size, ETag and content (`None` for a blob) of each key."""
        found = {}
        for repo, revision, files in self.revisions():
            for _, blob, size in files:
                found[f"blobs/{blob}"] = (size, _md5(blob), None)
            entries = [{"path": path, "blob": blob, "size": size} for path, blob, size in sorted(files)]
            manifest = {"repo": f"bench/{name(repo)}", "revision": revision, "repo_type": "model", "files": entries}
            _add(found, f"manifests/bench__{name(repo)}@{revision}.json", json.dumps(manifest, indent=2).encode())
        for repo in range(self.repos):
            _add(found, f"refs/bench__{name(repo)}/main", commit(repo, REVISIONS - 1).encode())
        # The blobs of other machines, which no manifest needs any more.
        for number in range(self.keys - len(found)):
            blob = hashlib.sha256(f"other {number}".encode()).hexdigest()
            found[f"blobs/{blob}"] = (LARGE, _md5(blob), None)
        return found

    def write_cache(self, hub):
        """Creates the cache, unless it exists. Large blobs are sparse: no command here reads them."""
        done = hub.parent / "done"
        if done.exists() and done.read_text() == repr(self):
            return
        shutil.rmtree(hub.parent, ignore_errors=True)
        hub.mkdir(parents=True)
        for repo, revision, files in self.revisions():
            folder = hub / f"models--bench--{name(repo)}"
            snapshot = folder / "snapshots" / revision
            for made in (folder / "blobs", snapshot, folder / "refs"):
                made.mkdir(parents=True, exist_ok=True)
            for path, blob, size in files:
                file = folder / "blobs" / blob
                with open(file, "wb") as out:
                    if size == SMALL:
                        out.write(b"# A benchmark\n")
                    out.truncate(size)
                os.utime(file, (WRITTEN - MONTH, WRITTEN - MONTH))
                os.symlink(f"../../blobs/{blob}", snapshot / path)
            (folder / "refs" / "main").write_text(revision)
        done.write_text(repr(self))


def name(repo):
    return f"repo-{repo:04}"


def commit(repo, number):
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def _file(repo, number, index):
    seed = f"{repo} {number} {index}".encode()
    if index in GIT_FILES:
        return GIT_FILES[index], hashlib.sha1(seed).hexdigest(), SMALL
    return f"model-{index:05}.safetensors", hashlib.sha256(seed).hexdigest(), LARGE


def _md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def _add(found, key, content):
    found[key] = (len(content), hashlib.md5(content).hexdigest(), content)
