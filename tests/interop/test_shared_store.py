"""Pulls into a cache with the client's cache-wide blob store."""

import json

import fixtures
from harness import Scenario, describe, folder

FIRST, SECOND = fixtures.SHARED


class SharedStore(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.target = self.machine("target", self.shared_bucket)

    def payloads(self):
        """Each payload of the store, with the repo folders in its list of references."""
        lists = (self.target.cache / "blobs").glob("*/*.refs")
        return {path.with_suffix(""): [line.split("/")[0] for line in path.read_text().split()] for path in lists}

    def blob(self, repo):
        (contents,) = repo.commits.values()
        return self.target.cache / folder(repo) / "blobs" / contents["model.safetensors"].etag

    def assert_sound(self, repos):
        self.assertEqual(self.target.client("scan")["warnings"], [])
        self.assert_resolves(self.target, repos)

    def test_a_blob_from_the_bucket_joins_the_store(self):
        source = self.machine("source", self.shared_bucket)
        source.download(fixtures.SHARED, xet=True)
        source.ours("push")
        self.target.download([FIRST], xet=True)
        report = json.loads(self.target.ours("pull", SECOND.id, "--json").stdout)
        self.assertEqual(report["shared"]["blobs"], 1)
        # The cache is what the client alone would have made of it.
        self.assertEqual(describe(self.target.cache), describe(source.cache))
        ((payload, references),) = self.payloads().items()
        self.assertEqual(references, [folder(FIRST), folder(SECOND)])
        self.assert_sound(fixtures.SHARED)

        # The client keeps the payload as long as the pulled repo needs it.
        self.target.client("delete", list(FIRST.commits))
        self.assertTrue(payload.exists())
        self.assert_sound([SECOND])
        self.target.client("delete", list(SECOND.commits))
        self.assertFalse(payload.exists())

    def test_a_blob_from_the_hub_is_published_for_the_client(self):
        # The store stays when its last payload goes.
        self.target.download([FIRST], xet=True)
        self.target.client("delete", list(FIRST.commits))
        self.assertEqual(self.payloads(), {})
        self.target.ours("pull", SECOND.id, "--fallback", "hf-hub")
        ((payload, references),) = self.payloads().items()
        self.assertEqual((references, self.blob(SECOND).resolve()), ([folder(SECOND)], payload.resolve()))

        before = payload.stat()
        self.target.download([FIRST], xet=True)
        self.assertEqual(self.blob(FIRST).resolve(), payload.resolve())
        self.assertEqual((payload.stat().st_ino, payload.stat().st_mtime_ns), (before.st_ino, before.st_mtime_ns))
        self.assertEqual(self.payloads()[payload], [folder(SECOND), folder(FIRST)])
        self.assert_sound(fixtures.SHARED)
