"""`prune` on caches of the real client, which can use the rest offline and without warnings."""

import json
import os
import time

import fixtures
from harness import HERE, TOOLS, Scenario, describe, files, finish, folder, request

DAY = 24 * 3600
# The caches were filled moments ago; without this, their repos would be skipped as busy.
AT_ONCE = ("--orphan-grace", "0")


class OnLaptop(Scenario):
    """A machine whose cache is pruned."""

    def prune(self, *arguments, code=0):
        return json.loads(self.laptop.ours("prune", "--json", *arguments, code=code).stdout)

    def age(self, repo, days):
        """Make all blobs of a repo look as if they had last been used `days` ago."""
        for path in files(self.laptop.cache / folder(repo) / "blobs").values():
            os.utime(path, (time.time() - days * DAY,) * 2)

    def download(self, repo, *revisions, **extra):
        self.laptop.client("download", [request(repo, revision, **extra) for revision in revisions])

    def assert_sound(self, repos):
        """Assert that the client has no warnings, and can open every revision that it lists offline and unchanged."""
        scan = self.laptop.client("scan")
        self.assertEqual(scan["warnings"], [])
        self.assertEqual(sorted(scan["repos"]), sorted(f"{repo.kind} {repo.id}" for repo in repos))
        for repo in repos:
            commits = list(scan["repos"][f"{repo.kind} {repo.id}"])
            found = self.laptop.client("resolve", [request(repo, commit) for commit in commits])
            expected = [{path: file.sha256 for path, file in repo.commits[commit].items()} for commit in commits]
            self.assertEqual(found, expected)

    def assert_gone(self, repo):
        self.assertFalse((self.laptop.cache / folder(repo)).exists())


class Prune(OnLaptop):
    def setUp(self):
        super().setUp()
        self.laptop = self.machine("laptop")

    def test_a_cache_within_the_budget_does_not_change(self):
        self.laptop.download(fixtures.EVERYDAY)
        before = describe(self.laptop.cache)
        report = self.prune("--max-gb", "1")
        self.assertEqual((report["freed"], report["skipped"], report["failures"]), (0, [], []))
        self.assertEqual(describe(self.laptop.cache), before)

    def test_with_a_zero_budget_only_referenced_revisions_are_kept(self):
        repo = fixtures.by_id("acme/versions")
        detached = fixtures.by_id("acme/corpus", "dataset")
        self.laptop.download([repo])
        self.download(detached, detached.refs["main"])
        report = self.prune("--max-gb", "0", *AT_ONCE)
        self.assertEqual([one["repo"] for one in report["evicted"]], [detached.id])
        self.assertGreater(report["over_budget"], 0)
        self.assert_gone(detached)
        self.assert_sound([repo])
        self.assert_resolves(self.laptop, [repo])

    def test_referenced_revisions_are_evicted_least_recently_used_first(self):
        repos = [fixtures.by_id("gpt2"), fixtures.by_id("acme/large"), fixtures.by_id("a_/b")]
        self.laptop.download(repos)
        for repo, days in zip(repos, (1, 3, 2), strict=True):
            self.age(repo, days)
        report = self.prune("--max-size", "150KB", "--include-referenced", *AT_ONCE)
        self.assertEqual([one["repo"] for one in report["evicted"]], ["acme/large", "a_/b"])
        self.assertEqual(report["over_budget"], 0)
        self.assert_gone(repos[1])
        self.assert_gone(repos[2])
        self.assert_sound([repos[0]])
        self.assert_resolves(self.laptop, [repos[0]])

    def test_the_other_revisions_of_a_repo_can_still_be_used(self):
        repo = fixtures.by_id("acme/versions")
        self.laptop.download([repo])
        old = repo.refs["v1.0"]
        weights = repo.commits[old]["model.safetensors"]
        blob = self.laptop.cache / folder(repo) / "blobs" / weights.etag
        for path in files(self.laptop.cache / folder(repo) / "blobs").values():
            os.utime(path, (time.time() - DAY,) * 2)
        # Everything in v1.0 is older than main, including the config that they share.
        config = self.laptop.cache / folder(repo) / "blobs" / repo.commits[old]["config.json"].etag
        os.utime(config, (time.time() - 3 * DAY,) * 2)
        os.utime(blob, (time.time() - 2 * DAY,) * 2)
        report = self.prune("--max-size", "310KB", "--include-referenced", *AT_ONCE)
        self.assertEqual([one["revision"] for one in report["evicted"]], [old])
        self.assertEqual(sorted(report["evicted"][0]["refs"]), ["feature/old", "v1.0"])
        self.assertFalse(blob.exists())
        self.assertTrue(config.exists())
        self.assert_sound([repo])
        # Evicted revisions can be downloaded again.
        self.laptop.download([repo])
        self.assert_resolves(self.laptop, [repo])

    def test_a_shared_payload_is_deleted_with_the_last_repo_that_needs_it(self):
        first, second = fixtures.SHARED
        self.download(first, first.refs["main"], xet=True)
        self.download(second, "main", xet=True)
        (payload,) = {
            path.resolve() for path in files(self.laptop.cache).values() if path.name == self.etag(first)
        }
        before = describe(self.laptop.cache)
        self.assertEqual(self.prune("--max-gb", "1", *AT_ONCE)["freed"], 0)
        self.assertEqual(describe(self.laptop.cache), before)

        report = self.prune("--max-gb", "0", *AT_ONCE)
        self.assertEqual([one["repo"] for one in report["evicted"]], [first.id])
        self.assert_gone(first)
        self.assertTrue(payload.exists())
        references = payload.with_name(f"{payload.name}.refs").read_text()
        self.assertEqual(references, f"{folder(second)}/blobs/{self.etag(second)}\n")
        self.assert_sound([second])
        self.assert_resolves(self.laptop, [second])

        report = self.prune("--max-gb", "0", "--include-referenced", *AT_ONCE)
        self.assertEqual((report["size"], report["over_budget"]), (0, 0))
        self.assertFalse(payload.exists())
        self.assert_sound([])
        # The store still works.
        self.laptop.download(fixtures.SHARED, xet=True)
        self.assertTrue(payload.exists())
        self.assert_resolves(self.laptop, fixtures.SHARED)

    def etag(self, repo):
        (contents,) = repo.commits.values()
        return contents["model.safetensors"].etag

    def test_a_snapshot_without_links_is_evicted(self):
        kept, gone = fixtures.by_id("gpt2"), fixtures.by_id("acme/corpus", "dataset")
        self.laptop.client("download", [request(kept, "main")], HF_HUB_DISABLE_SYMLINKS="1")
        self.laptop.client("download", [request(gone, gone.refs["main"])], HF_HUB_DISABLE_SYMLINKS="1")
        report = self.prune("--max-gb", "0", *AT_ONCE)
        self.assertEqual([one["repo"] for one in report["evicted"]], [gone.id])
        self.assert_gone(gone)
        self.assert_sound([kept])
        self.assert_resolves(self.laptop, [kept])

    def test_a_download_in_another_process_is_not_affected(self):
        repo, bystander = fixtures.by_id("acme/large"), fixtures.by_id("acme/corpus", "dataset")
        (commit,) = repo.commits
        self.download(bystander, bystander.refs["main"])
        weights = repo.commits[commit]["model.safetensors"]
        gate = TOOLS.hub.hold(weights)
        self.addCleanup(TOOLS.hub.drop, weights)
        # By commit, so that no ref protects the files that are already here.
        download = self.laptop.start(
            TOOLS.python_v2, HERE / "client.py", "download", json.dumps([request(repo, commit)])
        )
        self.assertTrue(gate.reached.wait(60), "the download did not start")
        before = files(self.laptop.cache / folder(repo))
        report = self.prune("--max-gb", "0", "--include-referenced", *AT_ONCE)
        self.assertEqual([one["repo"] for one in report["evicted"]], [bystander.id])
        self.assertEqual([skip["reason"] for skip in report["skipped"]], ["held", "in-flight"])
        # Locked files are kept even without a grace period.
        report = self.prune("--max-gb", "0", "--include-referenced", *AT_ONCE, "--temporary-grace", "0")
        self.assertEqual([skip["reason"] for skip in report["skipped"]], ["held", "in-flight"])
        self.assertEqual(files(self.laptop.cache / folder(repo)), before)
        gate.release()
        finish(download)
        self.assert_gone(bystander)
        self.assert_sound([repo])

    def test_what_rm_leaves_opens_offline(self):
        kept, gone, versions = fixtures.by_id("gpt2"), fixtures.by_id("acme/paths"), fixtures.by_id("acme/versions")
        self.laptop.download([kept, gone, versions])
        self.laptop.ours("rm", gone.id, f"{versions.id}@v1.0")
        self.assert_gone(gone)
        scan = self.laptop.client("scan")
        self.assertNotIn(versions.refs["v1.0"], scan["repos"]["model acme/versions"])
        self.assert_sound([kept, versions])
        # What went can be downloaded again.
        self.laptop.download([gone, versions])
        self.assert_resolves(self.laptop, [kept, gone, versions])

    def test_rm_of_a_shared_payload(self):
        first, second = fixtures.SHARED
        self.laptop.download(fixtures.SHARED, xet=True)
        self.laptop.ours("rm", first.id)
        self.assert_gone(first)
        self.assert_sound([second])
        self.assert_resolves(self.laptop, [second])


class RequireRemote(OnLaptop):
    """What `prune --require-remote` evicts, a pull brings back; what the bucket lacks, stays."""

    REPOS = fixtures.EVERYDAY

    def setUp(self):
        super().setUp()
        self.bucket_of_laptop = self.bucket()
        self.laptop = self.machine("laptop", self.bucket_of_laptop)

    def prune_all(self):
        return self.prune("--max-gb", "0", "--require-remote", *AT_ONCE)

    def test_everything_that_was_pushed_goes_and_comes_back(self):
        self.laptop.download(self.REPOS)
        before = describe(self.laptop.cache)
        self.assertEqual(self.prune_all()["evicted"], [], "nothing is in the bucket yet")
        self.assertEqual(describe(self.laptop.cache), before)
        self.laptop.ours("push")
        report = self.prune_all()
        self.assertEqual((report["size"], report["skipped"]), (0, []))
        self.assert_sound([])
        self.pull_all_refs(self.laptop, self.REPOS)
        self.assertEqual(describe(self.laptop.cache), before)
        self.assert_resolves(self.laptop, self.REPOS)

    def test_what_the_bucket_lost_stays_and_opens_offline(self):
        kept, gone = fixtures.by_id("acme/versions"), fixtures.by_id("acme/corpus", "dataset")
        self.laptop.download([kept, gone])
        self.laptop.ours("push")
        old, main = kept.refs["v1.0"], kept.refs["main"]
        self.bucket_of_laptop.delete(f"blobs/{kept.commits[main]['model.safetensors'].etag}")
        report = self.prune_all()
        self.assertEqual([skip["lacks"]["what"] for skip in report["skipped"]], ["blobs"])
        self.assertIn(old, [one["revision"] for one in report["evicted"]])
        self.assert_gone(gone)
        self.assert_sound([kept])
        self.assertEqual(list(self.laptop.client("scan")["repos"]["model acme/versions"]), [main])
        self.pull_all_refs(self.laptop, [gone])
        self.laptop.pull(kept, "v1.0")
        self.assert_sound([kept, gone])

    def test_what_the_original_pushed_is_held(self):
        self.laptop.download(fixtures.PLAIN)
        self.laptop.original("push")
        report = self.prune_all()
        self.assertEqual((report["size"], report["skipped"]), (0, []))
        self.pull_all_refs(self.laptop, fixtures.PLAIN)
        self.assert_resolves(self.laptop, fixtures.PLAIN)
