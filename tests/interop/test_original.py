"""A bucket that is shared with the Python hf-cache-sync 0.1.0."""

import fixtures
from harness import TOOLS, Scenario, describe

COMMON = fixtures.PLAIN


class WithTheOriginal(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.source = self.machine("source", self.shared_bucket)
        self.target = self.machine("target", self.shared_bucket)

    def assert_same_except(self, *parts):
        """Assert that both caches are the same. 0.1.0 supports no trees, and pulls no refs other than main."""
        source, target = describe(self.source.cache), describe(self.target.cache)
        for described in (*source.values(), *target.values()):
            for part in parts:
                del described[part]
        self.assertEqual(target, source)

    def assert_main_was_pulled(self, repos):
        """Assert that the client resolves the main ref of each repo to the Hub's bytes."""
        for repo in repos:
            files = repo.commits[repo.refs["main"]]
            request = {"repo_id": repo.id, "repo_type": repo.kind}
            (found,) = self.target.client("resolve", [request])
            self.assertEqual(found, {path: file.sha256 for path, file in files.items()}, repo.id)

    def check_ours_pulls_from_the_original(self, python):
        self.source.download(COMMON, python=python)
        self.source.original("push")
        self.pull_all_refs(self.target, COMMON)
        self.assert_same_except("trees")
        for reader in (TOOLS.python_v2, TOOLS.python_v0):
            self.assert_resolves(self.target, COMMON, python=reader)

    def test_ours_pulls_what_the_original_pushed_from_a_2x_cache(self):
        self.check_ours_pulls_from_the_original(TOOLS.python_v2)

    def test_ours_pulls_what_the_original_pushed_from_a_0x_cache(self):
        self.check_ours_pulls_from_the_original(TOOLS.python_v0)

    def test_the_original_pulls_what_ours_pushed(self):
        self.source.download(COMMON)
        self.source.ours("push")
        for repo in COMMON:
            self.target.original("pull", repo.id)
        self.assert_main_was_pulled(COMMON)

    def test_the_original_pulls_a_commit_that_ours_pushed(self):
        repo = fixtures.by_id("acme/versions")
        self.source.download([repo])
        self.source.ours("push")
        for commit in repo.commits:
            self.target.original("pull", repo.id, "-r", commit)
        self.assert_same_except("trees", "refs")

    def test_the_original_lists_and_pulls_a_whole_bucket_of_ours(self):
        self.source.download(fixtures.EVERYDAY)
        self.source.ours("push")
        listing = self.target.original("list", "--remote").stdout
        self.target.original("pull-all")
        plain = [*COMMON, fixtures.by_id("acme/tiny")]
        for repo in plain:
            self.assertIn(repo.id, listing)
        self.assert_main_was_pulled(plain)

    def test_kernels_are_invisible_to_the_original(self):
        self.source.download(fixtures.KERNELS)
        self.source.ours("push")
        self.target.original("pull-all")
        self.assertFalse(self.target.cache.exists())

    def test_ours_adds_to_a_bucket_of_the_original(self):
        first, second = fixtures.by_id("gpt2"), fixtures.by_id("acme/versions")
        self.source.download([first])
        self.source.original("push")
        before = {key: self.shared_bucket.get(key) for key in self.shared_bucket.keys() if key.startswith("blobs/")}
        other = self.machine("other", self.shared_bucket)
        other.download([first, second])
        other.ours("push")
        for key, content in before.items():
            self.assertEqual(self.shared_bucket.get(key), content)
        self.target.original("pull-all")
        self.assert_main_was_pulled([first, second])
