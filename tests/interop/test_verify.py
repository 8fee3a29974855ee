"""`verify --repair` on damaged caches of the real client, which can use everything afterwards, and next to 0.1.0."""

import json
import os
import time

import fixtures
from harness import Scenario, describe, files, folder

REPOS = [fixtures.by_id("acme/versions"), fixtures.by_id("acme/large"), fixtures.by_id("acme/corpus", "dataset")]


class Verify(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.laptop = self.machine("laptop", self.shared_bucket)
        self.laptop.download(REPOS)

    def verify(self, *arguments, code=0):
        return json.loads(self.laptop.ours("verify", "--json", *arguments, code=code).stdout)

    def damage(self):
        """Damage a blob, a link, a ref and a tree of each repo."""
        for repo in REPOS:
            root = self.laptop.cache / folder(repo)
            blobs = sorted(files(root / "blobs").values())
            content = bytearray(blobs[0].read_bytes() or b"x")
            content[0] ^= 1
            blobs[0].write_bytes(content)
            if len(blobs) > 1:
                blobs[-1].unlink()
            (root / "refs" / "gone").write_text("f" * 40)
            os.utime(root / "refs" / "gone", (time.time() - 7200,) * 2)
            ref = root / "refs" / "main"
            ref.write_text(ref.read_text() + "\n")
            tree = sorted(files(root / "trees").values())[0]
            tree.chmod(0o600)
            tree.write_text("{")

    def test_a_cache_of_the_client_is_intact(self):
        before = describe(self.laptop.cache)
        report = self.verify()
        self.assertEqual((report["findings"], report["unverified"], report["failures"]), ([], [], []))
        self.assertEqual({row["status"] for row in report["revisions"]}, {"complete"})
        self.assertEqual(describe(self.laptop.cache), before)

    def test_after_a_repair_the_client_finds_everything(self):
        self.laptop.ours("push")
        intact = describe(self.laptop.cache, modes=False)
        self.damage()
        self.assertNotEqual(self.laptop.client("scan")["warnings"], [])
        reasons = {finding["reason"] for finding in self.verify(code=5)["findings"]}
        self.assertEqual(reasons, {"corrupt", "missing", "dangling-ref", "untidy-ref", "bad-tree"})
        report = self.verify("--repair")
        self.assertEqual({finding["outcome"] for finding in report["findings"]}, {"repaired"})
        self.assertEqual(describe(self.laptop.cache, modes=False), intact)
        self.assert_resolves(self.laptop, REPOS)
        self.assertEqual(self.verify()["findings"], [])

    def test_the_original_pulls_from_a_repaired_bucket(self):
        repo = REPOS[0]
        self.laptop.ours("push")
        client = self.shared_bucket._client
        keys = self.shared_bucket.keys()
        client.delete_object(Bucket=self.shared_bucket.name, Key=next(key for key in keys if key.startswith("blobs/")))
        manifest = next(key for key in keys if key.startswith("manifests/acme__versions@"))
        client.put_object(Bucket=self.shared_bucket.name, Key=manifest, Body=b"{")
        self.assertNotEqual(self.verify("--remote", code=5)["findings"], [])
        self.verify("--remote", "--repair")
        self.assertEqual(self.verify("--remote", "--deep")["findings"], [])
        target = self.machine("target", self.shared_bucket)
        for commit in repo.commits:
            target.original("pull", repo.id, "-r", commit)
