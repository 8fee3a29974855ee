"""Data missing from the bucket comes from the Hub, and the cache is as if the client had downloaded it."""

import fixtures
from harness import TOOLS, Scenario, describe, folder

HUB = ["--fallback", "hf-hub"]


class Fallback(Scenario):
    def setUp(self):
        super().setUp()
        self.shared_bucket = self.bucket()
        self.source = self.machine("source", self.shared_bucket)
        self.target = self.machine("target", self.shared_bucket)

    def pull(self, repo, ref):
        """Pull with ours and the fallback, check that stdout is only the path, and return stderr."""
        finished = self.target.ours("pull", repo.id, "-r", ref, "--repo-type", repo.kind, *HUB)
        snapshot = self.target.cache / folder(repo) / "snapshots" / repo.refs[ref]
        self.assertEqual(finished.stdout, f"{snapshot}\n")
        return finished.stderr

    def delete(self, prefix):
        """Delete every object with this prefix from the bucket."""
        for key in self.shared_bucket.keys():
            if key.startswith(prefix):
                self.shared_bucket._client.delete_object(Bucket=self.shared_bucket.name, Key=key)

    def assert_as_downloaded(self, repos, pythons=(TOOLS.python_v2, TOOLS.python_v0)):
        """Assert that the cache is as if a client had downloaded the repos, and that the clients can use it."""
        plain = self.machine("plain")
        plain.download(repos)
        self.assertEqual(describe(self.target.cache), describe(plain.cache))
        for python in pythons:
            self.assert_resolves(self.target, repos, python=python)

    def test_repos_missing_from_the_bucket_come_from_the_hub(self):
        for repo in fixtures.EVERYDAY:
            for ref in repo.refs:
                self.assertIn("from the Hub", self.pull(repo, ref))
        self.assert_as_downloaded(fixtures.EVERYDAY)

    def test_a_missing_kernel_comes_from_the_hub(self):
        self.pull(fixtures.KERNELS[0], "main")
        # The 0.x client does not support kernels.
        self.assert_as_downloaded(fixtures.KERNELS, [TOOLS.python_v2])

    def test_repos_from_the_hub_can_be_pushed(self):
        repos = [fixtures.by_id("acme/large"), fixtures.by_id("acme/corpus", "dataset")]
        for repo in repos:
            self.pull(repo, "main")
        self.target.ours("push")
        other = self.machine("other", self.shared_bucket)
        self.pull_all_refs(other, repos)
        self.assert_resolves(other, repos)
        self.assertEqual(describe(other.cache), describe(self.target.cache))

    def test_without_a_type_the_only_type_on_the_hub_is_pulled(self):
        self.target.ours("pull", "acme/corpus", *HUB)
        self.assertEqual(list(describe(self.target.cache)), ["datasets--acme--corpus"])

    def test_only_missing_and_corrupt_blobs_come_from_the_hub(self):
        repo = fixtures.by_id("acme/large")
        ((_, files),) = repo.commits.items()
        self.source.download([repo])
        self.source.ours("push")
        self.delete(f"blobs/{files['extra.bin'].etag}")
        corrupt = bytes(len(files["model.safetensors"].data))
        self.shared_bucket._client.put_object(
            Bucket=self.shared_bucket.name, Key=f"blobs/{files['model.safetensors'].etag}", Body=corrupt
        )
        before = TOOLS.hub.bodies
        self.assertIn("from the bucket and the Hub", self.pull(repo, "main"))
        self.assertEqual(TOOLS.hub.bodies - before, 2)
        self.assert_as_downloaded([repo])

    def test_pull_all_replaces_missing_data_from_the_hub(self):
        repos = fixtures.TWINS[:2] + [fixtures.by_id("gpt2"), fixtures.by_id("acme/corpus", "dataset")]
        self.source.download(repos)
        self.source.ours("push")
        self.delete("manifests/gpt2@")
        self.delete("manifests/acme__corpus@")
        (files,) = fixtures.TWINS[1].commits.values()
        self.delete(f"blobs/{files['data.bin'].etag}")
        self.target.ours("pull-all", code=1)
        self.target.ours("pull-all", *HUB)
        self.assert_as_downloaded(repos)
        before = TOOLS.hub.bodies
        self.target.ours("pull-all", *HUB)
        self.assertEqual(TOOLS.hub.bodies - before, 0)
