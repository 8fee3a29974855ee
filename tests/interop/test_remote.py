"""`remote rm` and `remote gc`: beside pushes, and on a bucket shared with the Python hf-cache-sync 0.1.0."""

import hashlib
import json
import os
import random
import time

import fixtures
from harness import TOOLS, Scenario, finish
from servers import READ_ONLY


class Remote(Scenario):
    def setUp(self):
        super().setUp()
        self.team = self.bucket()
        self.cleaner = self.machine("cleaner", self.team)

    def assert_whole(self):
        """Assert that every ref leads to a manifest, and that every blob that a manifest names has the right bytes."""
        keys = set(self.team.keys())
        for key in keys:
            if key.startswith("refs/"):
                encoded = key.split("/")[1]
                self.assertIn(f"manifests/{encoded}@{self.team.get(key).decode()}.json", keys, key)
        for key, manifest in self.team.manifests().items():
            for name in {file["blob"] for file in manifest["files"]}:
                self.assertIn(f"blobs/{name}", keys, key)
                content = self.team.get(f"blobs/{name}")
                git = hashlib.sha1(b"blob %d\0" % len(content) + content)
                self.assertEqual((git if len(name) == 40 else hashlib.sha256(content)).hexdigest(), name, key)

    def put(self, name, content):
        self.team._client.put_object(Bucket=self.team.name, Key=f"blobs/{name}", Body=content)

    def report(self, *arguments, code=0):
        return json.loads(self.cleaner.ours("remote", *arguments, "--json", code=code).stdout)

    def test_after_rm_and_gc_the_original_pulls_what_is_left(self):
        gone, kept = fixtures.by_id("gpt2"), fixtures.by_id("acme/versions")
        source = self.machine("source", self.team)
        source.download([gone, kept])
        source.original("push")
        self.put("e" * 64, b"of nobody")
        before = set(self.team.keys())
        self.report("rm", gone.id, "--yes")
        self.report("rm", kept.id, "-r", "v1.0", "--yes")
        report = self.report("gc", "--grace", "0", "--yes")
        self.assertGreater(report["blobs"]["blobs"], 1)
        self.assertNotIn(f"blobs/{'e' * 64}", self.team.keys())
        self.assertLess(set(self.team.keys()), before)
        self.assert_whole()
        target = self.machine("target", self.team)
        target.original("pull-all")
        (found,) = target.client("resolve", [{"repo_id": kept.id, "repo_type": kept.kind}])
        files = kept.commits[kept.refs["main"]]
        self.assertEqual(found, {path: file.sha256 for path, file in files.items()})
        # 0.1.0 brings back what was removed, and everything is as it was.
        source.original("push")
        self.assertEqual(set(self.team.keys()), before - {f"blobs/{'e' * 64}"})

    def test_gc_keeps_what_is_young(self):
        source = self.machine("source", self.team)
        source.download([fixtures.by_id("gpt2")])
        source.ours("push")
        self.put("e" * 64, b"of nobody")
        before = self.team.keys()
        report = self.report("gc", "--yes")
        self.assertEqual((report["blobs"]["blobs"], report["kept"][0]["reason"]), (0, "young"))
        self.assertEqual(self.team.keys(), before)

    def test_unfinished_uploads_are_counted_and_aborted(self):
        self.team._client.create_multipart_upload(Bucket=self.team.name, Key=f"blobs/{'a' * 64}")
        other = self.team._client.create_multipart_upload(Bucket=self.team.name, Key="somebody/elses")
        self.assertEqual(self.report("du")["unfinished_uploads"], 1)
        self.assertEqual(self.report("gc", "--yes")["uploads"], 0)
        self.assertEqual(self.report("gc", "--grace", "0", "--yes")["uploads"], 1)
        self.assertEqual(self.report("du")["unfinished_uploads"], 0)
        uploads = self.team._client.list_multipart_uploads(Bucket=self.team.name).get("Uploads", [])
        self.assertEqual([upload["UploadId"] for upload in uploads], [other["UploadId"]])

    def test_many_blobs_go_in_a_few_requests(self):
        for number in range(1200):
            self.put(f"{number:064x}", b"x")
        started = time.monotonic()
        self.assertEqual(self.report("gc", "--grace", "0", "--yes")["blobs"]["blobs"], 1200)
        self.assertLess(time.monotonic() - started, 60)
        self.assertEqual(self.team.keys(), [])

    def test_a_read_only_key_changes_nothing(self):
        source = self.machine("source", self.team)
        source.download([fixtures.by_id("gpt2")])
        source.ours("push")
        self.put("e" * 64, b"of nobody")
        before = self.team.keys()
        reader = self.machine("reader", self.team, keys=READ_ONLY)
        reader.ours("remote", "du")
        for arguments in (("rm", "gpt2"), ("gc", "--grace", "0")):
            ended = reader.ours("remote", *arguments, "--yes", code=3)
            self.assertIn("not allowed", ended.stderr)
        self.assertEqual(self.team.keys(), before)

    def expire(self, kind):
        """Remove the notices of killed processes, as if the time for which they count had passed."""
        # By then, the store has long since handled their last requests.
        time.sleep(1)
        for key in self.team.keys():
            if key.startswith(f"_hf_cache_sync_gc/{kind}-"):
                self.team.delete(key)

    def test_deletions_and_pushes_killed_at_random_lose_nothing(self):
        seed = int(os.environ.get("SEED") or random.randrange(2**32))
        print(f"seed: {seed}")
        chance = random.Random(seed)
        repos = [fixtures.by_id("gpt2"), fixtures.by_id("acme/versions"), fixtures.by_id("acme/paths")]
        kept = fixtures.by_id("acme/corpus", "dataset")
        keeper = self.machine("keeper", self.team)
        keeper.download([kept])
        keeper.ours("push")
        machines = [self.machine(f"m{number}", self.team) for number in range(4)]
        for number, machine in enumerate(machines):
            machine.download(repos[: 1 + number % 3])
        for turn in range(6):
            # Nothing names the blobs any more; without a grace period, only the notices protect them.
            machines[2].ours("push")
            for repo in repos:
                self.cleaner.ours("remote", "rm", repo.id, "--yes")
            pushes = [machine.start(TOOLS.ours, "push") for machine in machines]
            deletions = [
                self.cleaner.start(TOOLS.ours, "remote", "gc", "--grace", "0", "--yes") for _ in range(2)
            ]
            removal = self.cleaner.start(TOOLS.ours, "remote", "rm", "acme/versions", "--yes")
            running = [*pushes, *deletions, removal]
            killed = [process for process in running if turn and chance.random() < 0.4]
            for process in chance.sample(killed, len(killed)):
                time.sleep(chance.random() * 0.2)
                process.kill()
            # Deletions wait for nobody: what they have left when all are over is left by killed ones.
            for process in [*deletions, removal]:
                finish(process, code=None if process in [*killed, removal] else 0)
            if removal not in killed:
                # It is there, or not yet, or a push is publishing it.
                self.assertIn(removal.returncode, (0, 1, 4))
            self.expire("deletion")
            for process in pushes:
                finish(process, code=None if process in killed else 0)
            self.assert_whole()
            for machine in machines:
                machine.ours("push")
            self.assert_whole()
            self.expire("push")
        reader = self.machine("reader", self.team)
        self.pull_all_refs(reader, [*repos, kept])
        self.assert_resolves(reader, [*repos, kept])
