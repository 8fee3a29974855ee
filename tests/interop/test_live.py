"""Read-only keys, and a client that uses the same cache at the same time."""

import hashlib
import json
import os
import random
import signal
import subprocess

from huggingface_hub.utils import WeakFileLock

import fixtures
from harness import HERE, TOOLS, Scenario, describe, finish, folder, request
from hub import git_oid
from servers import READ_ONLY

ROUNDS = int(os.environ.get("CONCURRENCY_ROUNDS", "3"))


class Doctor(Scenario):
    def test_a_read_only_key_is_reported_but_not_an_error(self):
        report = self.machine("reader", self.bucket(), keys=READ_ONLY).ours("doctor")
        self.assertIn("read-only", report.stdout.lower())

    def test_a_read_only_key_fails_if_writing_is_required(self):
        report = self.machine("reader", self.bucket(), keys=READ_ONLY).ours("doctor", "--require-write", code=None)
        self.assertNotIn(report.returncode, (0, 2))

    def test_a_read_write_key_passes_and_leaves_no_probe(self):
        bucket = self.bucket()
        self.machine("writer", bucket).ours("doctor", "--require-write")
        self.assertEqual(bucket.keys(), [])

    def test_a_read_only_key_can_pull(self):
        bucket, repo = self.bucket(), fixtures.by_id("gpt2")
        source, reader = self.machine("source", bucket), self.machine("reader", bucket, keys=READ_ONLY)
        source.download([repo])
        source.ours("push")
        self.pull_all_refs(reader, [repo])
        self.assertEqual(describe(reader.cache), describe(source.cache))


class WithARunningClient(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.repo = fixtures.by_id("acme/large")
        ((_, self.files),) = self.repo.commits.items()
        self.weights = self.files["model.safetensors"]

    def start_download(self, machine):
        """Start a download in another process, which the Hub pauses halfway through its largest file."""
        gate = TOOLS.hub.hold(self.weights)
        self.addCleanup(TOOLS.hub.drop, self.weights)
        command = [TOOLS.python_v2, HERE / "client.py", "download", json.dumps([request(self.repo, "main")])]
        process = machine.start(*command)
        self.assertTrue(gate.reached.wait(60), "the download did not start")
        return gate, process

    def assert_bucket_is_sound(self):
        """Assert that all objects are complete: blobs match their names, and manifests only name existing blobs."""
        keys = self.shared_bucket.keys()
        for key in (key for key in keys if key.startswith("blobs/")):
            name, content = key.removeprefix("blobs/"), self.shared_bucket.get(key)
            self.assertIn(name, (hashlib.sha256(content).hexdigest(), git_oid(content)))
        for manifest in self.shared_bucket.manifests().values():
            for entry in manifest["files"]:
                self.assertIn(f"blobs/{entry['blob']}", keys)

    def test_a_push_during_a_download_publishes_only_complete_files(self):
        source = self.machine("source", self.shared_bucket)
        gate, download = self.start_download(source)
        in_flight = list((source.cache / folder(self.repo) / "blobs").glob("*.incomplete"))
        self.assertEqual(len(in_flight), 1)

        source.ours("push")
        self.assert_bucket_is_sound()
        self.assertNotIn(f"blobs/{self.weights.etag}", self.shared_bucket.keys())
        self.assertTrue(in_flight[0].exists(), "push must not touch the download")

        gate.release()
        finish(download)
        source.ours("push")
        self.assert_bucket_is_sound()
        target = self.machine("target", self.shared_bucket)
        self.pull_all_refs(target, [self.repo])
        self.assertEqual(describe(target.cache), describe(source.cache))
        self.assert_resolves(target, [self.repo])

    def test_a_pull_waits_for_the_clients_lock_on_a_blob(self):
        source, target = (self.machine(name, self.shared_bucket) for name in ("source", "target"))
        source.download([self.repo])
        source.ours("push")
        lock = target.cache / ".locks" / folder(self.repo) / f"{self.weights.etag}.lock"
        lock.parent.mkdir(parents=True)
        with WeakFileLock(lock):
            pull = target.start(TOOLS.ours, "pull", self.repo.id)
            with self.assertRaises(subprocess.TimeoutExpired, msg="pull did not wait for the lock"):
                pull.wait(timeout=5)
            self.assertFalse((target.cache / folder(self.repo) / "blobs" / self.weights.etag).exists())
        finish(pull)
        self.assertEqual(describe(target.cache), describe(source.cache))


class EverythingAtOnce(Scenario):
    def test_all_commands_beside_a_client_on_one_cache_and_bucket(self):
        bucket = self.bucket()
        machine, other = self.machine("machine", bucket), self.machine("other", bucket)
        repos = [fixtures.by_id(name) for name in ("gpt2", "acme/versions", "acme/paths")]
        repos.append(fixtures.by_id("acme/corpus", "dataset"))
        other.download(repos[:2])
        other.ours("push")
        machine.cache.mkdir()
        watch = machine.start(TOOLS.ours, "--json", "watch", "--debounce", "0.2")
        downloads = json.dumps([request(repo, ref) for repo in repos for ref in repo.refs])
        commands = [
            ["push"],
            ["push"],
            ["push", "--workers", "1"],
            ["push", "--workers", "2"],
            ["pull", "gpt2"],
            ["pull", "acme/versions", "-r", "v1.0"],
            ["pull-all"],
            ["pull-all", "--workers", "1"],
            ["prune", "--max-size", "0B", "--yes"],
            ["prune", "--max-size", "0B", "--require-remote", "--yes"],
            ["remote", "gc", "--grace", "0", "--yes"],
        ]
        seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
        print(f"SEED={seed}")
        order = random.Random(seed)
        for _ in range(ROUNDS):
            client = machine.start(TOOLS.python_v2, HERE / "client.py", "download", downloads)
            order.shuffle(commands)
            running = [machine.start(TOOLS.ours, *command) for command in commands]
            for process in [*running, client]:
                finish(process)
            for manifest in bucket.manifests().values():
                for entry in manifest["files"]:
                    content = bucket.get(f"blobs/{entry['blob']}")
                    self.assertIn(entry["blob"], (hashlib.sha256(content).hexdigest(), git_oid(content)))
        watch.send_signal(signal.SIGTERM)
        updates = [json.loads(line) for line in finish(watch).stdout.splitlines()]
        self.assertEqual({update.get("failed", 0) for update in updates}, {0})

        # What was evicted comes back, and everything fits together.
        machine.download(repos)
        machine.ours("push")
        machine.ours("verify")
        machine.ours("verify", "--remote", "--deep")
        self.assert_resolves(machine, repos)
        target = self.machine("target", bucket)
        self.pull_all_refs(target, repos)
        self.assert_resolves(target, repos)
