"""Commands that are killed: the real client finds nothing wrong in the cache, has what was complete before, and can go on."""

import itertools
import os
import random
import time

import fixtures
from harness import TOOLS, Scenario, finish, folder, request
from serving import Served

ROUNDS = int(os.environ.get("KILL_ROUNDS", "3"))


def expected(repo):
    (files,) = repo.commits.values()
    return {path: file.sha256 for path, file in files.items()}


class Killed(Scenario):
    def setUp(self):
        super().setUp()
        self.repo, self.complete = fixtures.by_id("acme/large"), fixtures.by_id("acme/tiny")
        self.shared_bucket = self.bucket()
        self.source = self.machine("source", self.shared_bucket)
        self.source.download([self.repo, self.complete])
        self.source.ours("push")
        seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
        print(f"SEED={seed}")
        self.random = random.Random(seed)
        self.numbers = itertools.count()

    def prepared(self, repos):
        """Return a machine with these repos in its cache."""
        machine = self.machine(f"machine-{next(self.numbers)}", self.shared_bucket)
        for repo in repos:
            machine.pull(repo, "main")
        return machine

    def start_pull(self):
        machine = self.prepared([])
        return machine, machine.start(TOOLS.ours, "pull", self.repo.id, "--repo-type", self.repo.kind)

    def kill_and_scan(self, machine, process):
        process.kill()
        finish(process, code=None)
        self.assert_no_warnings(machine)

    def assert_no_warnings(self, machine):
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            if machine.cache.exists():
                warnings = machine.client("scan", python=python)["warnings"]
                # The old client does not know the tag that the new one writes.
                self.assertEqual([one for one in warnings if not one.endswith("/CACHEDIR.TAG")], [], machine.home)

    def assert_found(self, machine, *repos):
        found = machine.client("resolve", [request(repo, "main") for repo in repos])
        self.assertEqual(found, [expected(repo) for repo in repos])

    def test_a_pull_killed_when_an_entry_appears_leaves_no_warning(self):
        for entry in ("", "blobs", "blobs/*", "trees", "snapshots/*"):
            machine, process = self.start_pull()
            repo = machine.cache / folder(self.repo)
            while process.poll() is None and not (any(repo.glob(entry)) if entry else repo.exists()):
                pass
            self.kill_and_scan(machine, process)
            machine.pull(self.repo, "main")
            self.assert_no_warnings(machine)
            self.assert_found(machine, self.repo)

    def kill_at_random(self, prepare, line, *, stays=None):
        """Kill a command at random moments, and run it again.

        `prepare` returns a machine. `stays` is a repo that has to be complete at any moment.
        """
        machine = prepare()
        started = time.monotonic()
        machine.ours(*line)
        usual = time.monotonic() - started
        for _ in range(ROUNDS):
            machine = prepare()
            process = machine.start(TOOLS.ours, *line)
            time.sleep(self.random.uniform(0, usual))
            self.kill_and_scan(machine, process)
            if stays:
                self.assert_found(machine, stays)
            # The client goes on without a repair, in a copy of what the kill has left.
            other = self.machine(f"copy-{next(self.numbers)}")
            other.run("cp", "-a", machine.cache, other.cache)
            other.download([self.repo, self.complete])
            self.assert_found(other, self.repo, self.complete)
            self.assert_no_warnings(other)
            again = machine.ours(*line, code=None)
            # What has been removed cannot be removed again.
            self.assertIn(again.returncode, (0, 4) if line[0] == "rm" else (0,), again.stderr)
            self.assert_no_warnings(machine)
            if stays:
                self.assert_found(machine, stays)
        return machine

    def test_a_pull_killed_at_random(self):
        line = ("pull", self.repo.id, "--repo-type", self.repo.kind)
        machine = self.kill_at_random(lambda: self.prepared([self.complete]), line, stays=self.complete)
        self.assert_found(machine, self.repo, self.complete)

    def test_a_push_killed_at_random(self):
        def prepare():
            machine = self.machine(f"machine-{next(self.numbers)}", self.bucket())
            machine.download([self.repo, self.complete])
            return machine

        machine = self.kill_at_random(prepare, ("push",), stays=self.repo)
        self.assert_found(machine, self.repo, self.complete)
        fresh = self.machine("fresh")
        fresh.env |= {name: value for name, value in machine.env.items() if name.startswith("B2_")}
        fresh.pull(self.repo, "main")
        self.assert_found(fresh, self.repo)

    def test_a_prune_killed_at_random(self):
        line = ("prune", "--max-size", "0B", "--require-remote", "--keep", self.complete.id, "--orphan-grace", "0", "--yes")
        machine = self.kill_at_random(lambda: self.prepared([self.repo, self.complete]), line, stays=self.complete)
        self.assertFalse((machine.cache / folder(self.repo)).exists())

    def test_an_rm_killed_at_random(self):
        line = ("rm", self.repo.id, "--yes")
        machine = self.kill_at_random(lambda: self.prepared([self.repo, self.complete]), line, stays=self.complete)
        self.assertFalse((machine.cache / folder(self.repo)).exists())

    def test_a_repair_killed_at_random(self):
        def prepare():
            machine = self.prepared([self.repo, self.complete])
            name = self.repo.commits[self.repo.refs["main"]]["model.safetensors"].etag
            with open(machine.cache / folder(self.repo) / "blobs" / name, "r+b") as blob:
                blob.seek(12345)
                blob.write(b"damaged")
            return machine

        # The client cannot know that a blob is bad, so it does not download it again.
        machine = prepare()
        started = time.monotonic()
        machine.ours("verify", "--repair")
        usual = time.monotonic() - started
        for _ in range(ROUNDS):
            machine = prepare()
            process = machine.start(TOOLS.ours, "verify", "--repair")
            time.sleep(self.random.uniform(0, usual))
            self.kill_and_scan(machine, process)
            self.assert_found(machine, self.complete)
            machine.ours("verify", "--repair")
            self.assert_no_warnings(machine)
            self.assert_found(machine, self.repo, self.complete)

    def test_a_server_killed_at_random(self):
        """`serve` fills the cache of its machine while a client on another one reads."""
        for _ in range(ROUNDS):
            machine = self.prepared([self.complete])
            served = Served(machine)
            client = self.machine(f"client-{next(self.numbers)}")
            client.env |= served.env
            download = client.start(TOOLS.python_v2, "-c", DOWNLOAD, self.repo.id)
            time.sleep(self.random.uniform(0, 2))
            served.kill()
            download.kill()
            finish(download, code=None)
            self.assert_no_warnings(machine)
            self.assert_no_warnings(client)
            self.assert_found(machine, self.complete)
            served = Served(machine)
            client.env |= served.env
            client.run(TOOLS.python_v2, "-c", DOWNLOAD, self.repo.id)
            served.stop()
            self.assert_found(client, self.repo)
            machine.pull(self.repo, "main")
            self.assert_no_warnings(machine)
            self.assert_found(machine, self.repo, self.complete)


DOWNLOAD = "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1])"
