"""Ours pushes, ours pulls into an empty cache, and the real client finds the same cache there."""

import fixtures
from harness import TOOLS, Scenario, describe, folder, request


class RoundTrip:
    """The scenarios that run on every server; `server` is the name of the server."""

    server: str

    def setUp(self):
        super().setUp()
        bucket = self.bucket(getattr(TOOLS, self.server))
        self.source, self.target = self.machine("source", bucket), self.machine("target", bucket)

    def push_and_pull(self, repos):
        self.source.ours("push")
        self.pull_all_refs(self.target, repos)

    def test_a_cache_of_the_2x_client_is_pulled_identically(self):
        repos = fixtures.EVERYDAY
        self.source.download(repos)
        self.push_and_pull(repos)
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            self.assert_resolves(self.target, repos, python=python)

    def test_a_cache_of_the_0x_client_is_pulled_identically(self):
        repos = fixtures.EVERYDAY
        self.source.download(repos, python=TOOLS.python_v0)
        self.push_and_pull(repos)
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            self.assert_resolves(self.target, repos, python=python)

    def test_a_cache_with_the_shared_store_is_pulled_with_regular_blobs(self):
        repos = fixtures.SHARED + [fixtures.by_id("gpt2")]
        self.source.download(repos, xet=True)
        payloads = {self.blob(self.source, repo).resolve() for repo in fixtures.SHARED}
        self.assertEqual([path.parent.parent for path in payloads], [self.source.cache.resolve() / "blobs"])
        self.push_and_pull(repos)
        for repo in fixtures.SHARED:
            self.assertFalse(self.blob(self.target, repo).is_symlink())
        # The client makes payloads in the shared store read-only; other blobs have normal modes.
        self.assertEqual(describe(self.target.cache, modes=False), describe(self.source.cache, modes=False))
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            self.assert_resolves(self.target, repos, python=python)

    def blob(self, machine, repo):
        (files,) = repo.commits.values()
        return machine.cache / folder(repo) / "blobs" / files["model.safetensors"].etag


class OnS3sFs(RoundTrip, Scenario):
    server = "s3s_fs"


class OnSeaweedFS(RoundTrip, Scenario):
    server = "seaweedfs"


class Revisions(Scenario):
    """Ways to name a revision, all repo types, and how the client uses a pulled cache."""

    def setUp(self):
        super().setUp()
        bucket = self.bucket()
        self.source, self.target = self.machine("source", bucket), self.machine("target", bucket)

    def test_a_revision_without_a_ref_can_be_pulled_by_commit(self):
        repo = fixtures.by_id("acme/versions")
        commit = repo.refs["v1.0"]
        self.source.client("download", [request(repo, commit)])
        self.source.ours("push")
        self.target.pull(repo, commit)
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))
        self.assertEqual(describe(self.target.cache)[folder(repo)]["refs"], {})

    def test_a_revision_can_be_pulled_by_short_commit(self):
        repo = fixtures.by_id("acme/versions")
        commit = repo.refs["v1.0"]
        self.source.download([repo])
        self.source.ours("push")
        self.assertEqual(self.target.pull(repo, commit[:8]).name, commit)

    def test_a_kernel_and_a_model_can_have_the_same_name(self):
        repos = [fixtures.by_id("acme/tiny", "kernel"), fixtures.by_id("acme/tiny")]
        self.source.download(repos)
        self.source.ours("push")
        self.pull_all_refs(self.target, repos)
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))
        self.assert_resolves(self.target, repos)

    def test_without_a_type_the_model_is_pulled(self):
        self.source.download(fixtures.TWINS)
        self.source.ours("push")
        self.target.ours("pull", "acme/tiny")
        self.assertEqual(list(describe(self.target.cache)), ["models--acme--tiny"])

    def test_without_a_type_the_only_other_type_is_pulled(self):
        self.source.download([fixtures.by_id("acme/corpus", "dataset")])
        self.source.ours("push")
        self.target.ours("pull", "acme/corpus")
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))

    def test_an_online_client_downloads_nothing_again(self):
        self.source.download(fixtures.EVERYDAY)
        self.source.ours("push")
        self.pull_all_refs(self.target, fixtures.EVERYDAY)
        for python in (TOOLS.python_v2, TOOLS.python_v0):
            before = TOOLS.hub.bodies
            self.target.download(fixtures.EVERYDAY, python=python)
            self.assertEqual(TOOLS.hub.bodies - before, 0)
        self.assertEqual(describe(self.target.cache), describe(self.source.cache))
