"""Shared by all scenarios: machines (each with its own cache, on which the tools run) and comparisons of caches."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path

from servers import READ_WRITE, REGION, Bucket

HERE = Path(__file__).parent
TIMEOUT = 300


@dataclass
class Tools:
    """The programs under test and the servers they use. Set once by `suite.py`."""

    ours: str
    python_v2: str
    python_v0: str
    python_libraries: str
    python_v1: str
    python_without_xet: str
    root: Path = None
    hub: object = None
    s3s_fs: object = None
    seaweedfs: object = None

    @property
    def original(self):
        """hf-cache-sync 0.1.0, installed next to the interpreter."""
        return str(Path(self.python_v2).parent / "hf-cache-sync")


TOOLS = Tools(
    os.environ["HF_CACHE_SYNC_BIN"],
    sys.executable,
    os.environ["PYTHON_V0"],
    os.environ["PYTHON_LIBRARIES"],
    os.environ["PYTHON_V1"],
    os.environ["PYTHON_WITHOUT_XET"],
)
STARTED = []


class Machine:
    """A computer with its own home and Hub cache, connected to one bucket (or none)."""

    def __init__(self, root, bucket=None, keys=READ_WRITE):
        self.home = root / "home"
        self.cache = root / "hub"
        self.home.mkdir(parents=True)
        inherited = ("PATH", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
        self.env = {name: os.environ[name] for name in inherited if name in os.environ}
        self.env |= {
            "HOME": str(self.home),
            "HF_HUB_CACHE": str(self.cache),
            "HF_ENDPOINT": TOOLS.hub.endpoint,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT),
        }
        if bucket:
            self.env |= {
                "B2_APPLICATION_KEY_ID": keys[0],
                "B2_APPLICATION_KEY": keys[1],
                "B2_ENDPOINT": bucket.server.endpoint,
                "B2_BUCKET": bucket.name,
                "B2_REGION": REGION,
            }

    def start(self, *command, stderr_to=None, **env):
        """Start a command with this machine's environment. If it is still running after the test, it is killed."""
        with open(stderr_to or os.devnull, "a") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.home,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log if stderr_to else subprocess.PIPE,
                text=True,
            )
        STARTED.append(process)
        return process

    def run(self, *command, code=0, **env):
        """Run a command to completion, check its exit code (unless None), and return the finished process."""
        return finish(self.start(*command, **env), code)

    def ours(self, *arguments, code=0):
        return self.run(TOOLS.ours, *arguments, code=code)

    def original(self, *arguments, code=0):
        return self.run(TOOLS.original, *arguments, code=code, COLUMNS="200")

    def pull(self, repo, revision):
        """Pull with ours, and return the snapshot's path, which must be the only line on stdout."""
        output = self.ours("pull", repo.id, "-r", revision, "--repo-type", repo.kind).stdout
        return Path(output.removesuffix("\n"))

    def client(self, action, value=None, *, python=None, **env):
        """Call the real huggingface_hub client (see `client.py`), offline if that is enough."""
        if action in ("resolve", "scan", "delete"):
            env = {"HF_HUB_OFFLINE": "1"} | env
        command = [python or TOOLS.python_v2, HERE / "client.py", action, json.dumps(value)]
        return json.loads(self.run(*command, **env).stdout)

    def download(self, repos, *, python=None, **extra):
        """Fill the cache with the real client: every ref of every repo."""
        self.client(
            "download", [request(repo, ref, **extra) for repo in repos for ref in repo.refs], python=python
        )


def kill_started():
    """Kill all started processes that are still running."""
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def finish(process, code=0):
    """Wait for a process, with a time limit, and check its exit code (unless None)."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    if code is not None and process.returncode != code:
        raise AssertionError(f"{process.args} exited with {process.returncode}, not {code}\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def request(repo, revision, **extra):
    """Return the client's arguments for one revision of a repo."""
    return {"repo_id": repo.id, "repo_type": repo.kind, "revision": revision, **extra}


def folder(repo):
    """Return the name of the repo's folder in a cache."""
    return f"{repo.kind}s--{repo.id.replace('/', '--')}"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(root):
    """Return all files and links below a folder by their relative paths."""
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_symlink() or path.is_file()}


def describe(cache, *, modes=True):
    """Return everything that readers of a cache rely on: the links, bytes, refs and trees of each repo."""
    described = {}
    for repo in sorted(path for path in cache.iterdir() if "--" in path.name):
        described[repo.name] = {
            "blobs": {
                name: (sha256(path), stat.filemode(path.stat().st_mode) if modes else None)
                for name, path in files(repo / "blobs").items()
            },
            "snapshots": {
                name: (os.readlink(path), sha256(path)) for name, path in files(repo / "snapshots").items()
            },
            "refs": {name: path.read_bytes() for name, path in files(repo / "refs").items()},
            "trees": {name: path.read_bytes() for name, path in files(repo / "trees").items()},
        }
    return described


class Scenario(unittest.TestCase):
    """A test with its own folders and buckets."""

    maxDiff = None
    _buckets = 0

    def setUp(self):
        self.root = Path(tempfile.mkdtemp(dir=TOOLS.root))
        self.addCleanup(shutil.rmtree, self.root)
        self.addCleanup(kill_started)

    def machine(self, name, bucket=None, **extra):
        return Machine(self.root / name, bucket, **extra)

    def bucket(self, server=None):
        Scenario._buckets += 1
        return Bucket(server or TOOLS.seaweedfs, f"test-{Scenario._buckets}")

    def pull_all_refs(self, machine, repos):
        """Pull every ref of every repo with ours, and check the path that each pull prints."""
        for repo in repos:
            for ref, commit in repo.refs.items():
                snapshot = machine.cache / folder(repo) / "snapshots" / commit
                self.assertEqual(machine.pull(repo, ref).resolve(), snapshot.resolve())

    def assert_resolves(self, machine, repos, *, python=None):
        """Assert that the real client finds every ref of every repo offline, with the Hub's bytes and no warnings."""
        requests = [request(repo, ref) for repo in repos for ref in repo.refs]
        expected = [
            {path: file.sha256 for path, file in repo.commits[commit].items()}
            for repo in repos
            for commit in repo.refs.values()
        ]
        self.assertEqual(machine.client("resolve", requests, python=python), expected)
        scan = machine.client("scan", python=python)
        self.assertEqual(scan["warnings"], [])
        refs = {f"{repo.kind} {repo.id}": dict.fromkeys(repo.refs.values(), ()) for repo in repos}
        for repo in repos:
            for ref, commit in repo.refs.items():
                refs[f"{repo.kind} {repo.id}"][commit] = sorted([*refs[f"{repo.kind} {repo.id}"][commit], ref])
        self.assertEqual(scan["repos"], refs)
