"""Partial snapshots, of which machines have different files."""

import json

import fixtures
from harness import Scenario, describe, request

SOME = {"allow_patterns": ["config.json"]}
OTHERS = {"allow_patterns": ["*.bin", "*.safetensors"]}


class Partial(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.repo = fixtures.by_id("acme/large")
        ((self.commit, self.files),) = self.repo.commits.items()

    def pusher(self, name, **patterns):
        """Return a machine that has downloaded some files and pushed them."""
        machine = self.machine(name, self.shared_bucket)
        machine.client("download", [request(self.repo, "main", **patterns)])
        machine.ours("push")
        return machine

    def assert_bucket_is_complete(self):
        (manifest,) = self.shared_bucket.manifests().values()
        listed = [(entry["path"], entry["blob"], entry["size"]) for entry in manifest["files"]]
        expected = [(path, file.etag, len(file.data)) for path, file in self.files.items()]
        self.assertEqual(sorted(listed), sorted(expected))
        target = self.machine("target", self.shared_bucket)
        self.pull_all_refs(target, [self.repo])
        self.assert_resolves(target, [self.repo])

    def test_partial_after_full_keeps_the_full_manifest(self):
        self.pusher("full")
        self.pusher("partial", **SOME)
        self.assert_bucket_is_complete()

    def test_full_after_partial_completes_the_manifest(self):
        self.pusher("partial", **SOME)
        self.pusher("full")
        self.assert_bucket_is_complete()

    def test_two_disjoint_parts_make_a_complete_revision(self):
        self.pusher("one", **SOME)
        self.pusher("other", **OTHERS)
        self.assert_bucket_is_complete()

    def test_revisions_from_different_machines_add_up(self):
        versions = fixtures.by_id("acme/versions")
        for ref in versions.refs:
            machine = self.machine(ref.replace("/", "-"), self.shared_bucket)
            machine.client("download", [request(versions, ref)])
            machine.ours("push")
        target = self.machine("target", self.shared_bucket)
        self.pull_all_refs(target, [versions])
        self.assert_resolves(target, [versions])

    def test_a_pull_completes_a_partial_snapshot(self):
        self.pusher("full")
        target = self.machine("target", self.shared_bucket)
        target.client("download", [request(self.repo, "main", **SOME)])
        self.pull_all_refs(target, [self.repo])
        self.assert_resolves(target, [self.repo])

    def test_the_client_treats_a_pulled_partial_snapshot_like_the_source(self):
        source = self.pusher("partial", **SOME)
        target = self.machine("target", self.shared_bucket)
        self.pull_all_refs(target, [self.repo])
        self.assertEqual(describe(target.cache), describe(source.cache))
        requests = [request(self.repo, "main"), request(self.repo, "main", **SOME)]
        full, part = target.client("resolve", requests)
        self.assertEqual(source.client("resolve", requests), [full, part])
        self.assertEqual(full, "IncompleteSnapshotError")
        self.assertEqual(part, {"config.json": self.files["config.json"].sha256})

    def test_a_pulled_part_equals_that_of_the_client(self):
        """`pull --include` leaves what `snapshot_download(allow_patterns=…)` leaves, and a later pull completes it."""
        self.pusher("full")
        client = self.machine("client", self.shared_bucket)
        client.client("download", [request(self.repo, "main", **SOME)])
        target = self.machine("target", self.shared_bucket)
        target.ours("pull", self.repo.id, "--include", "config.json")
        self.assertEqual(describe(target.cache), describe(client.cache))

        requests = [request(self.repo, "main"), request(self.repo, "main", **SOME)]
        whole, part = target.client("resolve", requests)
        self.assertEqual(whole, "IncompleteSnapshotError")
        self.assertEqual(part, {"config.json": self.files["config.json"].sha256})
        scanned = target.client("scan")
        self.assertEqual(scanned["warnings"], [])
        self.assertEqual(scanned["repos"], {f"model {self.repo.id}": {self.commit: ["main"]}})
        (row,) = json.loads(target.ours("diff", "--json").stdout)["revisions"]
        self.assertEqual(row["completeness"], "partial")

        target.ours("pull", self.repo.id, "--exclude", "*.safetensors")
        (two,) = target.client("resolve", [request(self.repo, "main", allow_patterns=["*.json", "*.bin"])])
        self.assertEqual(two, {path: self.files[path].sha256 for path in ("config.json", "extra.bin")})
        self.pull_all_refs(target, [self.repo])
        self.assert_resolves(target, [self.repo])

    def test_pushed_parts_add_up(self):
        source = self.machine("source", self.shared_bucket)
        source.client("download", [request(self.repo, "main")])
        source.ours("push", "--include", "*.json")
        # What 0.1.0 pulls is what was pushed.
        old = self.machine("old", self.shared_bucket)
        old.original("pull", self.repo.id)
        (found,) = old.client("resolve", [request(self.repo, "main", **SOME)])
        self.assertEqual(found, {"config.json": self.files["config.json"].sha256})
        source.ours("push", self.repo.id, "-r", "main", "--exclude", "config.json")
        self.assert_bucket_is_complete()
