"""`watch` while the real client downloads into the same cache from another process."""

import hashlib
import json
import signal
import subprocess
import time

import fixtures
from harness import HERE, TOOLS, Scenario, describe, finish, request
from hub import git_oid


class Watch(Scenario):
    def setUp(self):
        super().setUp()
        self.remote = self.bucket()
        self.source = self.machine("source", self.remote)
        self.source.cache.mkdir()

    def start_watch(self, *arguments):
        return self.source.start(TOOLS.ours, "--json", "watch", "--debounce", "0.2", *arguments)

    def start_client(self, requests, **env):
        return self.source.start(TOOLS.python_v2, HERE / "client.py", "download", json.dumps(requests), **env)

    def wait_until(self, what, condition, *running):
        """Wait for a condition, and assert that these processes keep running meanwhile."""
        deadline = time.monotonic() + 120
        while not condition():
            for process in running:
                self.assertIsNone(process.poll(), f"{process.args} exited while waiting for {what}")
            self.assertLess(time.monotonic(), deadline, f"timed out waiting for {what}")
            time.sleep(0.05)

    def expected_keys(self, repos):
        """Return all keys of a complete push of these repos."""
        keys = set()
        for repo in repos:
            name = repo.id.replace("/", "__")
            keys |= {f"refs/{name}/{ref}" for ref in repo.refs}
            for commit, files in repo.commits.items():
                keys.add(f"manifests/{name}@{commit}.json")
                keys |= {f"blobs/{file.etag}" for file in files.values()}
        return keys

    def assert_sound(self):
        """Assert that blobs match their names now, and that manifests and refs only point to existing objects."""
        # Everything that objects in the first listing refer to must be in the second one.
        keys = self.remote.keys()
        manifests = {key: json.loads(self.remote.get(key)) for key in keys if key.startswith("manifests/")}
        refs = {key: self.remote.get(key).decode() for key in keys if key.startswith("refs/")}
        after = set(self.remote.keys())
        for key in (key for key in keys if key.startswith("blobs/")):
            content = self.remote.get(key)
            self.assertIn(key.removeprefix("blobs/"), (hashlib.sha256(content).hexdigest(), git_oid(content)))
        for manifest in manifests.values():
            for entry in manifest["files"]:
                self.assertIn(f"blobs/{entry['blob']}", after)
        for key, commit in refs.items():
            self.assertIn(f"manifests/{key.split('/')[1]}@{commit}.json", after)

    def is_complete(self, repos):
        """Return whether the bucket has everything, and each manifest all files of its commit."""
        if not self.expected_keys(repos) <= set(self.remote.keys()):
            return False
        listed = {m["revision"]: {f["path"] for f in m["files"]} for m in self.remote.manifests().values()}
        return all(listed[commit] == set(files) for repo in repos for commit, files in repo.commits.items())

    def stop(self, watch):
        """Stop a watch with a signal, check that it succeeds, and return its updates."""
        watch.send_signal(signal.SIGTERM)
        finished = finish(watch)
        self.assertEqual(finished.stderr, "")
        return [json.loads(line) for line in finished.stdout.splitlines()]

    def check_watch_during_downloads(self, *arguments):
        repos = [fixtures.by_id(name) for name in ("gpt2", "acme/versions", "acme/paths", "acme/large")]
        weights = repos[-1].commits[repos[-1].refs["main"]]["model.safetensors"]
        gate = TOOLS.hub.hold(weights)
        self.addCleanup(TOOLS.hub.drop, weights)
        watch = self.start_watch(*arguments)
        client = self.start_client([request(repo, ref) for repo in repos for ref in repo.refs])
        self.wait_until("the held download", gate.reached.is_set, watch, client)

        self.wait_until("the finished repos", lambda: self.is_complete(repos[:-1]), watch)
        self.assert_sound()
        self.assertNotIn(f"blobs/{weights.etag}", self.remote.keys())
        self.assertEqual(len(list(self.source.cache.rglob("*.incomplete"))), 1, "the watch must not touch the download")

        gate.release()
        finish(client)
        self.wait_until("the rest", lambda: self.is_complete(repos), watch)
        self.assert_sound()
        self.assertEqual(set(self.remote.keys()), self.expected_keys(repos), "no other keys may exist")
        updates = self.stop(watch)
        self.assertEqual((updates[0]["event"], updates[-1]["event"]), ("started", "stopped"))
        self.assertEqual({update.get("failed", 0) for update in updates}, {0})

        target = self.machine("target", self.remote)
        self.pull_all_refs(target, repos)
        self.assertEqual(describe(target.cache), describe(self.source.cache))
        self.assert_resolves(target, repos)

    def test_watch_during_downloads(self):
        self.check_watch_during_downloads()

    def test_polling_watch_during_downloads(self):
        self.check_watch_during_downloads("--poll", "0.3")

    def test_watch_pushes_blobs_from_the_shared_store(self):
        """The second repo's weights are not downloaded: the client links them to the first one's."""
        first, second = fixtures.SHARED
        watch = self.start_watch()
        finish(self.start_client([request(first, "main", filename="model.safetensors", xet=True)]))
        weights = first.commits[first.refs["main"]]["model.safetensors"]
        self.wait_until("the weights", lambda: f"blobs/{weights.etag}" in self.remote.keys(), watch)
        finish(self.start_client([request(second, "main", filename="model.safetensors", xet=True)]))
        manifest = f"manifests/acme__shared-finetune@{second.refs['main']}.json"
        self.wait_until("the second manifest", lambda: manifest in self.remote.keys(), watch)
        self.assert_sound()
        self.stop(watch)

    def test_the_client_can_use_the_cache_during_and_after_a_watch(self):
        repo = fixtures.by_id("gpt2")
        watch = self.start_watch()
        self.source.download([repo])
        self.wait_until("the repo", lambda: self.is_complete([repo]), watch)
        self.assert_resolves(self.source, [repo])
        second = self.source.ours("watch", code=1)
        self.assertIn("another `watch`", second.stderr)
        self.stop(watch)
        self.assert_resolves(self.source, [repo])

    def test_the_next_watch_completes_the_push_of_a_killed_one(self):
        repo = fixtures.by_id("acme/large")
        self.source.download([repo])
        watch = self.start_watch()
        self.wait_until("the first key", lambda: self.remote.keys(), watch)
        watch.kill()
        watch.wait()
        self.assert_sound()
        watch = self.start_watch()
        self.wait_until("the repo", lambda: self.is_complete([repo]), watch)
        self.assert_sound()
        with self.assertRaises(subprocess.TimeoutExpired):
            watch.wait(timeout=0.1)
        self.stop(watch)
