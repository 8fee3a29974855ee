"""The data: sets of blobs, each laid out as a Hub cache and, for stores that load a folder, as a bucket."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Set:
    """`count` blobs of `size` bytes each, in one model."""

    name: str
    count: int
    size: int
    about: str
    # Whether everything is in the bucket before a push.
    present: bool = False

    @property
    def repo(self):
        return f"bench/{self.name}"

    @property
    def bytes(self):
        return self.count * self.size

    @property
    def commit(self):
        return hashlib.sha1(self.name.encode()).hexdigest()

    @property
    def directions(self):
        return ("push",) if self.present else ("push", "pull")


SETS = {
    one.name: one
    for one in (
        Set("a", 4, 512 * MIB, "4 blobs of 512 MiB"),
        Set("b", 2_000, 20_000, "2,000 blobs of 20 kB"),
        Set("c", 1, 8192 * MIB, "one blob of 8 GiB"),
        Set("d", 10_000, 4_000, "10,000 blobs of 4 kB that are in the bucket already", present=True),
        Set("e", 4, 64 * MIB, "4 blobs of 64 MiB"),
        Set("smoke", 3, 1_000, "3 blobs of 1 kB, to check that everything works"),
    )
}
# What is measured by default.
USUAL = ("a", "b", "c", "d", "e")
SCAN_REPOS, SCAN_FILES = 1_000, 100


@dataclass(frozen=True)
class Place:
    """The folders of a set: `hub` is a cache, `bucket` a folder of objects, `blobs` the files for tools that only copy."""

    hub: Path
    bucket: Path
    blobs: Path


def make(one, root):
    """Creates a set, unless it exists, and reads it once, so that all runs find it in the page cache."""
    folder = root / one.name
    place = Place(folder / "hub", folder / "bucket", folder / "hub" / f"models--bench--{one.name}" / "blobs")
    done = folder / "done"
    if not done.exists() or done.read_text() != repr(one):
        shutil.rmtree(folder, ignore_errors=True)
        _generate(one, place)
        done.write_text(repr(one))
    for path in place.blobs.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.read(4 * MIB):
                pass
    for link in place.blobs.parent.glob("snapshots/*/*"):
        link.stat()
    return place


def _generate(one, place):
    repo = place.blobs.parent
    snapshot = repo / "snapshots" / one.commit
    for folder in (place.blobs, snapshot, repo / "refs", place.bucket / "manifests"):
        folder.mkdir(parents=True)
    files = []
    for number in range(one.count):
        path = f"file-{number:05}.bin"
        blob = _write_blob(one, number, place.blobs)
        (snapshot / path).symlink_to(f"../../blobs/{blob}")
        files.append({"path": path, "blob": blob, "size": one.size})
    (repo / "refs" / "main").write_text(one.commit)

    # The same set as a bucket, see docs/bucket-format.md.
    (place.bucket / "blobs").symlink_to(place.blobs.resolve())
    manifest = {"repo": one.repo, "revision": one.commit, "repo_type": "model", "files": files}
    (place.bucket / "manifests" / f"bench__{one.name}@{one.commit}.json").write_text(json.dumps(manifest, indent=2))
    ref = place.bucket / "refs" / f"bench__{one.name}" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(one.commit)


def _write_blob(one, number, blobs):
    """Writes a block that does not compress, over and over, each time with a different start."""
    seed = f"{one.name} {number}".encode()
    block = bytearray(hashlib.shake_128(seed).digest(min(one.size, 16 * MIB)))
    hasher, left = hashlib.sha256(), one.size
    unnamed = blobs / "unnamed"
    with open(unnamed, "wb") as file:
        while left:
            block[:8] = left.to_bytes(8, "big")
            chunk = memoryview(block)[: min(left, len(block))]
            hasher.update(chunk)
            file.write(chunk)
            left -= len(chunk)
    unnamed.rename(blobs / hasher.hexdigest())
    return hasher.hexdigest()


def make_scan(root):
    """Creates a cache of many repos and files that is only scanned: tiny blobs, whose bytes do not match their names."""
    hub, done = root / "scan" / "hub", root / "scan" / "done"
    if not done.exists():
        shutil.rmtree(hub.parent, ignore_errors=True)
        for number in range(SCAN_REPOS):
            repo = hub / f"models--bench--scan-{number:04}"
            commit = hashlib.sha1(repo.name.encode()).hexdigest()
            blobs, snapshot = repo / "blobs", repo / "snapshots" / commit
            for folder in (blobs, snapshot, repo / "refs"):
                folder.mkdir(parents=True)
            (repo / "refs" / "main").write_text(commit)
            for file in range(SCAN_FILES):
                blob = hashlib.sha256(f"{number} {file}".encode()).hexdigest()
                (blobs / blob).write_bytes(b"bench")
                (snapshot / f"file-{file:03}.bin").symlink_to(f"../../blobs/{blob}")
        done.touch()
    return hub
