"""Tests hf-cache-sync.exe under wine with an S3 server on loopback. Started by `run`."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
KEY, SECRET, BUCKET = "suite-key", "suite-secret", "team-cache"
COMMIT, OTHER, THIRD = "0123456789abcdef0123456789abcdef01234567", "8" * 40, "9" * 40
COMPILER = "x86_64-w64-mingw32-gcc"
TIMEOUT = 300
NOBODY = 65534
MIB = 1 << 20


def data(seed, size):
    """Return bytes that resemble weights, different for each seed."""
    return hashlib.shake_256(str(seed).encode()).digest(size)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def windows(path):
    """Return the Windows form of a path: wine maps the root to drive Z."""
    return "Z:" + str(path).replace("/", "\\")


def wait_until(what, condition):
    """Poll until another process has done something."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {TIMEOUT} s waiting until {what}")
        time.sleep(0.02)


class Wine:
    """A wine prefix that contains the program. Stopping it ends its processes."""

    def __init__(self, root, exe):
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.exe = self.bin / "hf-cache-sync.exe"
        shutil.copy(exe, self.exe)
        self.add_library(self.bin)
        subprocess.run([COMPILER, "-municode", "-o", self.bin / "hold.exe", HERE / "hold.c"], check=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "WINEPREFIX": str(root / "prefix"),
            "WINEDEBUG": "-all",
            # Disable windows, browsers and .NET, so that wine neither prompts nor downloads anything.
            "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
        }

    @staticmethod
    def add_library(folder):
        """Build the library that wine lacks in a folder, where the programs in it find it."""
        library, source = folder / "bcryptprimitives.dll", HERE / "bcryptprimitives.c"
        subprocess.run([COMPILER, "-shared", "-o", library, source, "-ladvapi32"], check=True)

    def start_prefix(self):
        self.tool("wineboot", "--init")
        self.tool("wine", "winecfg", "-v", "win10")

    def tool(self, *command):
        subprocess.run(command, env=self.env, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)

    def stop(self):
        # The wineserver of this prefix ends all processes in it.
        subprocess.run(["wineserver", "-k"], env=self.env, timeout=TIMEOUT, check=False)
        subprocess.run(["wineserver", "-w"], env=self.env, timeout=TIMEOUT, check=False)


WINE = None
SERVER = None
STARTED = []


class Server:
    """The project's S3 server, running on Linux. Objects are files in its folder."""

    def __init__(self, binary, root):
        self.root = root
        root.mkdir()
        command = [binary, "--root", root, "--access-key", KEY, "--secret-key", SECRET]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.endpoint = self.process.stdout.readline().strip()
        assert self.endpoint.startswith("http://127.0.0.1:"), self.endpoint

    def stop(self):
        self.process.kill()
        self.process.wait()


class Repo:
    """A revision of a model: its files by path."""

    def __init__(self, name, files, commit=COMMIT, refs=("main",)):
        self.name, self.files, self.commit, self.refs = name, files, commit, refs
        self.folder = "models--" + name.replace("/", "--")

    def etag(self, path):
        content = self.files[path]
        return git_sha1(content) if path.endswith((".json", ".txt", ".md")) else sha256(content)

    def size(self):
        """Return the total size; each blob counts once."""
        return sum({self.etag(path): len(content) for path, content in self.files.items()}.values())

    def write(self, hub, real=False, age=0):
        """Write it as huggingface_hub does without links (real), or as this tool does (hard links)."""
        repo = hub / self.folder
        snapshot = repo / "snapshots" / self.commit
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        then = time.time() - age
        for path, content in self.files.items():
            blob, file = repo / "blobs" / self.etag(path), snapshot / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if real:
                file.write_bytes(content)
            else:
                if not blob.exists():
                    blob.write_bytes(content)
                os.link(blob, file)
            os.utime(file, (then, then))
        for ref in self.refs:
            (repo / "refs").mkdir(exist_ok=True)
            (repo / "refs" / ref).write_text(self.commit)
        if age:
            for folder in [repo, *(path for path in repo.rglob("*") if path.is_dir())]:
                os.utime(folder, (then, then))

    def publish(self, bucket, sizes=None):
        """Publish it as 0.1.0 does. `sizes` are false sizes for some files."""
        for path, content in self.files.items():
            put(bucket, f"blobs/{self.etag(path)}", content)
        files = [
            {"path": path, "blob": self.etag(path), "size": (sizes or {}).get(path, len(content))}
            for path, content in sorted(self.files.items())
        ]
        manifest = {"repo": self.name, "revision": self.commit, "repo_type": "model", "files": files}
        encoded = self.name.replace("/", "__")
        put(bucket, f"manifests/{encoded}@{self.commit}.json", json.dumps(manifest, indent=2).encode())
        for ref in self.refs:
            put(bucket, f"refs/{encoded}/{ref}", self.commit.encode())


def put(bucket, key, content):
    path = bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class Case(unittest.TestCase):
    """A test with its own bucket and cache."""

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(dir=WINE.root))
        self.bucket_name = f"{BUCKET}-{self.dir.name.lower().replace('_', '-')}".rstrip("-")
        self.bucket = SERVER.root / self.bucket_name
        self.bucket.mkdir()
        self.hub = self.dir / "hub"
        self.env = WINE.env | {
            "B2_APPLICATION_KEY_ID": KEY,
            "B2_APPLICATION_KEY": SECRET,
            "B2_ENDPOINT": SERVER.endpoint,
            "B2_BUCKET": self.bucket_name,
            "B2_REGION": "us-east-1",
            "HF_HUB_CACHE": windows(self.hub),
        }

    def start(self, *arguments, exe=None, **env):
        process = subprocess.Popen(
            ["wine", exe or WINE.exe, *arguments],
            cwd=self.dir,
            env=self.env | env,
            stdin=subprocess.PIPE if exe else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        STARTED.append(process)
        return process

    def finish(self, process, code=0):
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        if code is not None:
            self.assertEqual(process.returncode, code, stdout + stderr)
        return stdout, stderr

    def run_tool(self, *arguments, code=0, **env):
        return self.finish(self.start(*arguments, **env), code)

    def json(self, *arguments, code=0, **env):
        return json.loads(self.run_tool(*arguments, "--json", code=code, **env)[0])

    def assert_refused(self, *arguments, code, words, **env):
        """Assert that a command fails with this exit code and one clear error of one to three lines."""
        stdout, stderr = self.run_tool(*arguments, code=code, **env)
        self.assertEqual(stdout, "")
        self.assertTrue(stderr.startswith("error: "), stderr)
        self.assertLessEqual(len(stderr.strip().splitlines()), 3, stderr)
        for word in words:
            self.assertIn(word, stderr)
        for word in ("os error", "panicked", "Os {"):
            self.assertNotIn(word, stderr)

    def assert_pulled(self, repo, hub=None, linked=True):
        """Assert that every file is complete, and is a hard link to its blob, or (not linked) has no blob."""
        folder = (hub or self.hub) / repo.folder
        snapshot = folder / "snapshots" / repo.commit
        found = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
        self.assertEqual(found, set(repo.files))
        for path, content in repo.files.items():
            file, blob = snapshot / path, folder / "blobs" / repo.etag(path)
            self.assertEqual(file.read_bytes(), content, path)
            self.assertFalse(file.is_symlink(), path)
            if linked:
                self.assertEqual(file.stat().st_ino, blob.stat().st_ino, path)
            else:
                self.assertFalse(blob.exists(), path)
        for ref in repo.refs:
            self.assertEqual((folder / "refs" / ref).read_text(), repo.commit)

    def assert_tidy(self, hub=None):
        """Assert that there are no temporary files."""
        state = (hub or self.hub) / ".locks" / ".hf-cache-sync"
        for part in ("staging", "partial"):
            left = [path.name for path in (state / part).glob("*")] if (state / part).exists() else []
            self.assertEqual(left, [], part)

    def disk_usage(self, hub=None):
        """Return the total size of the repos; a file with several names counts once."""
        files = {}
        for path in (hub or self.hub).glob("*--*/**/*"):
            if path.is_file() and path.parent.name != "refs":
                files[path.stat().st_ino] = path.stat().st_size
        return sum(files.values())


MODEL = Repo(
    "org/model",
    {
        "config.json": b'{"model_type": "bert"}\n',
        "copy/config.json": b'{"model_type": "bert"}\n',
        "model.safetensors": data("model", 9 * MIB + 5),
        "deep/er/weights.bin": data("weights", 300_000),
        "empty.txt": b"",
    },
)


class RoundTrip(Case):
    def test_push_and_pull(self):
        MODEL.write(self.hub)
        report = self.json("push")
        self.assertEqual(report["uploaded"], {"blobs": 4, "bytes": MODEL.size()})
        for path, content in MODEL.files.items():
            self.assertEqual((self.bucket / "blobs" / MODEL.etag(path)).read_bytes(), content, path)
        manifest = json.loads((self.bucket / f"manifests/org__model@{COMMIT}.json").read_text())
        self.assertEqual({file["path"] for file in manifest["files"]}, set(MODEL.files))
        self.assertEqual(self.json("push")["uploaded"]["blobs"], 0)
        self.assertFalse(self.json("diff", "--exit-code")["differs"])

        pulled = self.dir / "pulled" / "hub"
        # Set with HF_HOME and with backslashes, as is usual on Windows.
        env = {"HF_HUB_CACHE": "", "HF_HOME": windows(pulled.parent)}
        stdout, _ = self.run_tool("pull", "org/model", **env)
        self.assertEqual(stdout, windows(pulled / MODEL.folder / "snapshots" / COMMIT) + "\n")
        self.assert_pulled(MODEL, pulled)
        self.assert_tidy(pulled)
        again = self.json("pull", "org/model", **env)
        self.assertEqual((again["downloaded"]["blobs"], again["source"]), (0, "cache"))
        self.assertEqual(again["snapshot"], stdout.strip())
        self.assertFalse(self.json("diff", "--exit-code", **env)["differs"])

    def test_snapshots_have_regular_files_if_links_are_disabled(self):
        MODEL.publish(self.bucket)
        env = {"HF_HUB_DISABLE_SYMLINKS": "1"}
        self.run_tool("pull", "org/model", **env)
        snapshot = self.hub / MODEL.folder / "snapshots" / COMMIT
        for path, content in MODEL.files.items():
            self.assertEqual((snapshot / path).read_bytes(), content, path)
        self.assert_tidy()
        again = self.json("pull", "org/model", **env)
        self.assertEqual((again["downloaded"]["blobs"], again["source"]), (0, "cache"))
        self.assertEqual(self.json("status")["size"], self.disk_usage())

    def test_verify_finds_and_repairs_a_changed_file(self):
        MODEL.publish(self.bucket)
        self.run_tool("pull", "org/model")
        blob = self.hub / MODEL.folder / "blobs" / MODEL.etag("deep/er/weights.bin")
        content = bytearray(blob.read_bytes())
        content[7] ^= 1
        blob.write_bytes(content)
        self.assertEqual(self.json("pull", "org/model")["downloaded"]["blobs"], 0)
        self.assertEqual(self.json("pull", "org/model", "--verify")["downloaded"]["blobs"], 1)
        self.assert_pulled(MODEL)
        self.assertEqual(self.json("pull", "org/model", "--verify")["downloaded"]["blobs"], 0)
        self.assert_tidy()

    def test_long_paths_are_supported(self):
        deep = "/".join(f"{letter * 40}" for letter in "abcdefgh") + "/model.bin"
        repo = Repo("org/deep", {deep: data("deep", 10_000), "config.json": b"{}\n"})
        self.assertGreater(len(windows(self.hub / repo.folder / deep)), 400)
        repo.publish(self.bucket)
        self.run_tool("pull", "org/deep")
        self.assert_pulled(repo)
        shutil.rmtree(self.bucket)
        self.bucket.mkdir()
        self.assertEqual(self.json("push")["uploaded"]["blobs"], 2)
        self.assertEqual(self.json("status")["size"], repo.size())
        self.json("prune", "--max-size", "0", "--include-referenced", "--yes", code=None)

    def test_a_configuration_file_can_contain_windows_paths(self):
        self.run_tool("init")
        self.assertTrue((self.dir / ".hf-cache-sync.yaml").exists())
        (self.dir / ".hf-cache-sync.yaml").write_text(f"cache:\n  hf_cache_dir: {windows(self.hub)}\n")
        MODEL.write(self.hub)
        report = self.json("list", HF_HUB_CACHE="")
        self.assertEqual(report["cache_dir"], windows(self.hub))
        self.assertEqual([repo["repo"] for repo in report["repos"]], ["org/model"])


class Sizes(Case):
    def test_a_file_with_several_names_counts_once(self):
        MODEL.write(self.hub)
        twin = Repo("org/model", dict(MODEL.files, **{"more.json": b'{"more": 1}\n'}), commit=OTHER, refs=())
        twin.write(self.hub)
        total = self.disk_usage()
        self.assertEqual(total, twin.size())
        self.assertEqual(self.json("status")["size"], total)
        report = self.json("list", "--revisions")
        self.assertEqual((report["size"], report["repos"][0]["size"]), (total, total))
        sizes = {revision["revision"]: revision["size"] for revision in report["repos"][0]["revisions"]}
        self.assertEqual(sizes, {COMMIT: MODEL.size(), OTHER: twin.size()})
        plan = self.json("prune", "--max-size", f"{total}B", "--dry-run")
        self.assertEqual((plan["size_before"], plan["evicted"], plan["freed"]), (total, [], 0))

    def test_prune_frees_what_it_reports(self):
        day = 24 * 3600
        shared = data("shared", MIB)
        old = Repo("org/a", {"w.bin": data("old", 3 * MIB), "s.bin": shared}, commit=OTHER, refs=())
        new = Repo("org/a", {"w.bin": data("new", 2 * MIB), "s.bin": shared}, commit=THIRD, refs=())
        middle = Repo("org/b", {"w.bin": data("middle", 4 * MIB), "x/config.json": b"{}\n"}, refs=())
        real = Repo("org/c", {"w.bin": data("real", 2 * MIB)}, refs=())
        old.write(self.hub, age=90 * day)
        new.write(self.hub, age=10 * day)
        middle.write(self.hub, age=50 * day)
        real.write(self.hub, real=True, age=20 * day)
        # The shared file is the least recently used one.
        then = time.time() - 100 * day
        os.utime(self.hub / old.folder / "blobs" / old.etag("s.bin"), (then, then))
        before = self.disk_usage()
        self.assertEqual(before, 12 * MIB + 3)
        # Within the budget, nothing is evicted.
        kept = self.json("prune", "--max-size", "13MiB", "--yes")
        self.assertEqual((kept["size_before"], kept["evicted"]), (before, []))
        self.assertEqual(self.disk_usage(), before)

        # The two least recently used revisions are evicted.
        report = self.json("prune", "--max-size", "6MiB", "--yes")
        self.assertEqual([(gone["repo"], gone["revision"]) for gone in report["evicted"]],
                         [("org/a", OTHER), ("org/b", COMMIT)])
        after = self.disk_usage()
        self.assertEqual((report["freed"], report["size"]), (before - after, after))
        self.assertEqual(after, new.size() + real.size())
        self.assert_pulled(new)
        self.assert_pulled(real, linked=False)
        self.assertEqual(self.json("status")["size"], after)
        self.assert_tidy()

    def test_pulling_a_cached_revision_counts_as_use(self):
        day = 24 * 3600
        repo = Repo("org/one", {"w.bin": data(1, 50_000)})
        repo.publish(self.bucket)
        repo.write(self.hub, age=30 * day)
        blob = self.hub / repo.folder / "blobs" / repo.etag("w.bin")
        before = blob.stat()
        self.run_tool("pull", "org/one")
        self.assertGreater(blob.stat().st_atime, before.st_atime + 29 * day)
        self.assertEqual(blob.stat().st_mtime, before.st_mtime)


class Concurrent(Case):
    def pull_concurrently(self, count, **env):
        runs = [self.start("pull", "org/model", **env) for _ in range(count)]
        paths = {self.finish(run)[0] for run in runs}
        self.assertEqual(paths, {windows(self.hub / MODEL.folder / "snapshots" / COMMIT) + "\n"})
        self.assert_tidy()
        status = self.json("status")
        self.assertEqual((status["size"], status["problems"]), (self.disk_usage(), []))

    def test_two_concurrent_pulls(self):
        MODEL.publish(self.bucket)
        for _ in range(3):
            self.pull_concurrently(2)
            self.assert_pulled(MODEL)
            shutil.rmtree(self.hub)

    def test_four_concurrent_pulls(self):
        MODEL.publish(self.bucket)
        for _ in range(3):
            self.pull_concurrently(4)
            self.assert_pulled(MODEL)
            shutil.rmtree(self.hub)

    def test_two_concurrent_pulls_without_links(self):
        MODEL.publish(self.bucket)
        self.pull_concurrently(2, HF_HUB_DISABLE_SYMLINKS="1")
        snapshot = self.hub / MODEL.folder / "snapshots" / COMMIT
        for path, content in MODEL.files.items():
            self.assertEqual((snapshot / path).read_bytes(), content, path)


class Interrupted(Case):
    REPO = Repo("org/large", {"model.bin": data("large", 24 * MIB), "config.json": b"{}\n"})

    def start_partial_pull(self):
        """Start a pull, and wait until it has downloaded some, but not all parts of the large file."""
        self.REPO.publish(self.bucket)
        process = self.start("pull", "org/large", "--bwlimit", "8MiB/s", "--workers", "1")
        parts = self.hub / ".locks/.hf-cache-sync/partial" / f"{self.REPO.etag('model.bin')}.parts"

        def has_part():
            self.assertIsNone(process.poll(), "the pull ended too early")
            return parts.exists() and b"\1" in parts.read_bytes()

        wait_until("a part has been downloaded", has_part)
        return process

    def resume(self):
        report = self.json("pull", "org/large")
        self.assertLess(report["downloaded"]["bytes"], self.REPO.size(), "the pull did not resume")
        self.assert_pulled(self.REPO)
        self.assert_tidy()

    def test_a_killed_pull_resumes(self):
        process = self.start_partial_pull()
        process.kill()
        self.finish(process, code=None)
        self.assertFalse((self.hub / self.REPO.folder / "refs").exists())
        self.resume()

    def test_an_interrupted_pull_resumes(self):
        process = self.start_partial_pull()
        process.send_signal(signal.SIGINT)
        _, stderr = self.finish(process, code=130)
        self.assertIn("interrupted", stderr)
        self.resume()

    def test_prune_waits_for_a_download(self):
        pull = self.start_partial_pull()
        prune = self.start("prune", "--max-size", "1B", "--yes", "--json")
        self.assertIn("another hf-cache-sync", prune.stderr.readline())
        self.assertIsNone(pull.poll())
        self.finish(pull)
        report = json.loads(self.finish(prune)[0])
        # The new ref keeps the revision.
        self.assertEqual((report["size"], report["freed"]), (self.REPO.size(), 0))
        self.assert_pulled(self.REPO)


class Refused(Case):
    def test_reserved_names_are_refused(self):
        for name in ("aux.txt", "d/COM1", "a:b.txt", "dot."):
            odd = Repo("org/odd", {name: b"bytes", "config.json": b"{}\n"})
            odd.publish(self.bucket)
            report = self.json("pull", "org/odd", code=1)
            errors = [f"{failure['what']}: {failure['why']}" for failure in report["failures"]]
            self.assertEqual(errors, [f"cannot pull '{name}' of org/odd: this system cannot store a file of that name"])
            # The other file is there, but the revision does not look complete.
            snapshot = self.hub / odd.folder / "snapshots" / COMMIT
            self.assertEqual([path.name for path in snapshot.iterdir()], ["config.json"])
            self.assertFalse((self.hub / odd.folder / "refs").exists())
            shutil.rmtree(self.hub)

    def test_names_that_differ_only_in_case_are_refused(self):
        Repo("org/case", {"README.md": b"one\n", "readme.md": b"two\n"}).publish(self.bucket)
        report = self.json("pull", "org/case", code=1)
        self.assertEqual(len(report["failures"]), 1)
        self.assertIn("ignores case", report["failures"][0]["why"])
        self.assertFalse((self.hub / "models--org--case" / "refs").exists())

    def test_a_full_disk_is_detected_before_the_download(self):
        MODEL.publish(self.bucket, sizes={"model.safetensors": 1 << 46})
        self.assert_refused("pull", "org/model", code=1, words=["not enough disk space", "64.0 TiB"])
        self.assertFalse((self.hub / MODEL.folder / "snapshots").exists())
        self.hub.mkdir()
        free = self.json("status")["free"]
        disk = os.statvfs(self.dir)
        self.assertLess(abs(free - disk.f_bavail * disk.f_frsize), 1 << 30)

    def test_a_read_only_cache_is_refused(self):
        MODEL.publish(self.bucket)
        self.hub.mkdir()
        self.hub.chmod(0o555)
        self.assert_refused("pull", "org/model", code=3, words=[windows(self.hub), "who may write there"])
        self.hub.chmod(0o755)
        blobs = self.hub / MODEL.folder / "blobs"
        blobs.mkdir(parents=True)
        blobs.chmod(0o555)
        report = self.json("pull", "org/model", code=3)
        self.assertTrue(report["failures"])
        for failure in report["failures"]:
            self.assertIn(windows(blobs), failure["what"])
        self.assertFalse((blobs.parent / "refs").exists())
        blobs.chmod(0o755)

    def test_a_missing_cache_is_refused(self):
        self.assert_refused("push", code=4, words=[windows(self.hub)])


class InUse(Case):
    @contextmanager
    def hold(self, *files):
        process = self.start(*map(windows, files), exe=WINE.bin / "hold.exe")
        self.assertEqual(process.stdout.readline().strip(), "held")
        yield
        process.stdin.close()
        process.wait(timeout=TIMEOUT)
        process.stdout.close()
        process.stderr.close()

    def test_prune_keeps_open_files(self):
        day = 24 * 3600
        one = Repo("org/one", {"w.bin": data(1, MIB)}, refs=())
        two = Repo("org/two", {"w.bin": data(2, MIB)}, refs=())
        for repo in (one, two):
            repo.write(self.hub, age=30 * day)
        file = self.hub / one.folder / "snapshots" / COMMIT / "w.bin"
        with self.hold(file):
            report = self.json("prune", "--max-size", "1B", "--yes", code=1)
            self.assertEqual(len(report["failures"]), 1, report)
            self.assertIn("close the program", report["failures"][0]["hint"], report)
            # The other repo is evicted.
            self.assertFalse((self.hub / two.folder).exists())
            # Windows does not move the folder of an open file; wine does. Either way it stays complete.
            self.assertIn(self.disk_usage(), (0, one.size()))
            self.assertEqual(report["size"], self.disk_usage())
        self.json("prune", "--max-size", "1B", "--yes", "--orphan-grace", "0s")
        self.assertEqual(self.disk_usage(), 0)

    def test_pull_works_while_files_are_open(self):
        MODEL.publish(self.bucket)
        self.run_tool("pull", "org/model")
        snapshot = self.hub / MODEL.folder / "snapshots" / COMMIT
        (snapshot / "config.json").unlink()
        with self.hold(snapshot / "model.safetensors"):
            self.run_tool("pull", "org/model")
            self.run_tool("pull", "org/model", "--verify")
        self.assert_pulled(MODEL)

    def test_open_files_are_pushed(self):
        MODEL.write(self.hub)
        with self.hold(self.hub / MODEL.folder / "snapshots" / COMMIT / "model.safetensors"):
            self.assertEqual(self.json("push")["uploaded"]["blobs"], 4)


class Watch(Case):
    def test_new_files_are_pushed(self):
        self.hub.mkdir()
        process = self.start("watch", "--debounce", "0.2", "--json")
        events = []

        def read_until(name):
            for line in process.stdout:
                events.append(json.loads(line))
                if events[-1]["event"] == name:
                    return
            raise AssertionError(f"no '{name}' event: {events}, {process.stderr.read()}")

        read_until("started")
        MODEL.write(self.hub)
        wait_until("the ref is published", (self.bucket / "refs/org__model/main").exists)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        self.assertIn(process.returncode, (0, 130), stdout + stderr)
        self.assertFalse(self.json("diff", "--exit-code")["differs"])

    def test_a_second_watch_is_refused(self):
        self.hub.mkdir()
        process = self.start("watch", "--json")
        self.assertIn('"started"', process.stdout.readline())
        self.assert_refused("watch", code=1, words=["already running", windows(self.hub)])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT)


def run_rust_tests(words):
    """Run the integration tests that `run` has built. They start the program in its build folder."""
    exe, tests = Path(os.environ["HF_CACHE_SYNC_EXE"]), Path(os.environ["HF_CACHE_SYNC_TESTS"])
    with tempfile.TemporaryDirectory(prefix="hf-cache-sync-windows-") as root, ExitStack() as stack:
        wine = Wine(Path(root), exe)
        for folder in (exe.parent, tests.parent):
            wine.add_library(folder)
        stack.callback(wine.stop)
        wine.start_prefix()
        command = ["wine", tests, "--test-threads", "2", *words]
        return subprocess.run(command, env=wine.env, cwd=HERE.parents[1], check=False).returncode


def main(words):
    global WINE, SERVER
    # Make SIGTERM unwind like Ctrl-C, the only exception that unittest lets through, so that all processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-cache-sync-windows-")))
        WINE = Wine(root, os.environ["HF_CACHE_SYNC_EXE"])
        server = shutil.copy(os.environ["S3_SERVER_BIN"], root / "s3-server")
        if os.getuid() == 0:
            # Read-only folders do not stop root.
            for path in [root, *root.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        SERVER = Server(server, root / "store")
        stack.callback(SERVER.stop)
        stack.callback(WINE.stop)
        WINE.start_prefix()
        loader = unittest.TestLoader()
        loader.testNamePatterns = [f"*{word}*" for word in words] or None
        result = unittest.TextTestRunner(verbosity=2).run(loader.loadTestsFromModule(sys.modules[__name__]))
        for process in STARTED:
            if process.poll() is None:
                process.kill()
                process.wait()
    failed = len(result.failures) + len(result.errors)
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(run_rust_tests(sys.argv[2:]) if sys.argv[1:2] == ["--rust"] else main(sys.argv[1:]))
