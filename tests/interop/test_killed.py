"""Pulls that are killed, and not run again: the real client's scan finds nothing wrong in the cache."""

import random
import time

import fixtures
from harness import TOOLS, Scenario, finish, folder, request


class Killed(Scenario):
    def setUp(self):
        super().setUp()
        self.repo = fixtures.by_id("acme/large")
        self.shared_bucket = self.bucket()
        source = self.machine("source", self.shared_bucket)
        source.download([self.repo])
        source.ours("push")

    def start_pull(self, name):
        machine = self.machine(name, self.shared_bucket)
        return machine, machine.start(TOOLS.ours, "pull", self.repo.id, "--repo-type", self.repo.kind)

    def kill_and_scan(self, machine, process):
        process.kill()
        finish(process, code=None)
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            if machine.cache.exists():
                self.assertEqual(machine.client("scan", python=python)["warnings"], [], machine.home)

    def test_a_pull_killed_when_an_entry_appears_leaves_no_warning(self):
        for entry in ("", "blobs", "blobs/*", "trees", "snapshots/*"):
            machine, process = self.start_pull(f"at-{entry.replace('/', '-')}")
            repo = machine.cache / folder(self.repo)
            while process.poll() is None and not (any(repo.glob(entry)) if entry else repo.exists()):
                pass
            self.kill_and_scan(machine, process)
            machine.pull(self.repo, "main")
            self.assert_found(machine)

    def test_a_pull_killed_at_random_leaves_no_warning(self):
        started = time.monotonic()
        finish(self.start_pull("whole")[1])
        whole = time.monotonic() - started
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        for number in range(10):
            machine, process = self.start_pull(f"killed-{number}")
            time.sleep(chance.uniform(0, whole))
            self.kill_and_scan(machine, process)
        machine.pull(self.repo, "main")
        self.assert_found(machine)

    def assert_found(self, machine):
        self.assertEqual(machine.client("scan")["warnings"], [])
        (found,) = machine.client("resolve", [request(self.repo, "main")])
        (files,) = self.repo.commits.values()
        self.assertEqual(found, {path: file.sha256 for path, file in files.items()})
